//! The loop: sleeps until a key, a signal, an answer or the next moment to draw comes.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, getpid, kill_process};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use super::draw::{Theme, draw};
use super::keys::{Key, Keys};
use super::model::Model;
use super::rows::RowKey;
use super::sampler::{News, Samplers, Watched};
use super::screen::{self, Screen};
use super::view::{View, Wish};

/// Answers that come so close to each other are drawn together.
const TOGETHER: Duration = Duration::from_millis(50);
/// How long the rest of a key may take, on a slow line.
const KEY_REST: Duration = Duration::from_millis(100);
/// How often is drawn when nothing happens.
const DRAW: Duration = Duration::from_secs(1);

/// Why it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The person wants it, or the terminal has gone.
    Quit,
    /// This signal came.
    Signal(i32),
}

/// A running `vdectl top`.
pub struct Session {
    screen: Screen,
    theme: Theme,
    signals: SignalDelivery<UnixStream, SignalOnly>,
    samplers: Samplers,
    news: Receiver<News>,
    woken: UnixStream,
    began: Instant,
    keys: Keys,
    model: Model,
    view: View,
    /// The rows as they are shown.
    shown: Vec<RowKey>,
    /// When is drawn next.
    draw_at: Instant,
    /// When the rest of a key must have come.
    rest_until: Option<Instant>,
}

/// What is there to be seen to.
struct Ready {
    keys: bool,
    signal: bool,
    news: bool,
}

impl Session {
    /// Takes the terminal.
    pub fn start(
        interval: Duration,
        look: impl FnMut() -> Vec<Watched> + Send + 'static,
    ) -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        let caught = [SIGTERM, SIGHUP, SIGINT, SIGQUIT, SIGWINCH, SIGCONT];
        // Before the terminal is taken: from then on none of them may end us as it would.
        let signals = SignalDelivery::with_pipe(read, write, SignalOnly, caught)?;
        let (samplers, news, woken) = Samplers::start(interval, look)?;
        Ok(Self {
            screen: Screen::take()?,
            theme: screen::theme(),
            signals,
            samplers,
            news,
            woken,
            began: Instant::now(),
            keys: Keys::default(),
            model: Model::default(),
            view: View::new(interval),
            shown: Vec::new(),
            draw_at: Instant::now(),
            rest_until: None,
        })
    }

    /// Until the end.
    pub fn serve(&mut self) -> io::Result<End> {
        loop {
            if Instant::now() >= self.draw_at {
                self.draw()?;
                // A back end that is silent has to be marked although nothing comes.
                self.draw_at = Instant::now() + DRAW;
            }
            let ready = self.wait()?;
            if ready.news && self.listen() {
                self.draw_at = self.draw_at.min(Instant::now() + TOGETHER);
            }
            if ready.signal
                && let Some(number) = self.signals()?
            {
                return Ok(End::Signal(number));
            }
            let Some(keys) = self.input(ready.keys)? else { return Ok(End::Quit) };
            for key in keys {
                if self.key(key)? == Wish::Quit {
                    return Ok(End::Quit);
                }
            }
        }
    }

    fn draw(&mut self) -> io::Result<()> {
        let Self { screen, theme, model, view, shown, began, .. } = self;
        let now = began.elapsed();
        screen.draw(|frame| {
            let area = frame.area();
            *shown = draw(frame.buffer_mut(), area, model, view, now, *theme);
        })
    }

    /// Sleeps until there is something to do.
    fn wait(&self) -> io::Result<Ready> {
        let until = self.rest_until.map_or(self.draw_at, |rest| rest.min(self.draw_at));
        let left = until.saturating_duration_since(Instant::now());
        let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        let limit = Timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() };
        let stdin = io::stdin();
        let mut fds = [
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::new(self.signals.get_read(), PollFlags::IN),
            PollFd::new(&self.woken, PollFlags::IN),
        ];
        match poll(&mut fds, Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [keys, signal, news] = fds.map(|fd| !fd.revents().is_empty());
        Ok(Ready { keys, signal, news })
    }

    /// The keys that have come; none if the terminal has gone.
    fn input(&mut self, ready: bool) -> io::Result<Option<Vec<Key>>> {
        if !ready {
            // The rest of a key that does not come.
            let late = self.rest_until.take_if(|until| Instant::now() >= *until);
            return Ok(Some(late.and_then(|_| self.keys.give_up()).into_iter().collect()));
        }
        let mut bytes = [0; 1024];
        // Past the buffer of the standard library, of which `poll` knows nothing.
        let keys = match rustix::io::read(io::stdin(), &mut bytes) {
            Ok(0) | Err(Errno::IO) => return Ok(None),
            Ok(length) => self.keys.read(bytes.get(..length).unwrap_or_default()),
            Err(Errno::INTR | Errno::AGAIN) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        self.rest_until = self.keys.unfinished().then(|| Instant::now() + KEY_REST);
        Ok(Some(keys))
    }

    fn key(&mut self, key: Key) -> io::Result<Wish> {
        self.draw_at = Instant::now();
        let interval = self.view.interval;
        let wish = self.view.key(key, &self.shown);
        match wish {
            Wish::Draw | Wish::Quit => {}
            Wish::Repaint => self.screen.resize()?,
            Wish::Suspend => {
                screen::give_back();
                // We stop here, unless there is nobody who could ever wake us: then the system lets us go on.
                kill_process(getpid(), Signal::TSTP)?;
                self.screen.take_again()?;
            }
        }
        if self.view.interval != interval {
            self.samplers.set_interval(self.view.interval);
        }
        Ok(wish)
    }

    /// Sees to signals; gives the one that ends us.
    fn signals(&mut self) -> io::Result<Option<i32>> {
        self.draw_at = Instant::now();
        let numbers: Vec<i32> = self.signals.pending().collect();
        for number in numbers {
            match number {
                SIGWINCH => self.screen.resize()?,
                // A shell had the terminal.
                SIGCONT => self.screen.take_again()?,
                end => return Ok(Some(end)),
            }
        }
        Ok(None)
    }

    /// Takes in what the threads found; false if nothing of it is to be seen.
    fn listen(&mut self) -> bool {
        let mut bytes = [0; 1024];
        // More than one read leaves something: then we are back at once.
        let _ = self.woken.read(&mut bytes);
        let now = self.began.elapsed();
        for news in self.news.try_iter() {
            match news {
                News::Running(vms) => {
                    let list: Vec<_> = vms.iter().map(|vm| (vm.key(), vm.name.clone())).collect();
                    self.model.running(now, &list);
                    for (key, error) in self.samplers.watch(&vms) {
                        self.model.heard(&key, now, Err(format!("it cannot be asked: {error}")));
                    }
                }
                News::Heard(..) if self.view.paused => {}
                News::Heard(key, at, answer) => {
                    self.model.heard(&key, at.saturating_duration_since(self.began), answer);
                }
            }
        }
        !self.view.paused
    }
}
