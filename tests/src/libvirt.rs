//! A libvirt of its own: daemons, configuration, users and sockets of one test, which no other sees.
//!
//! Debian's packages are unpacked under `target/libvirt-VERSION`, not installed. A process of ours has namespaces of its own
//! for mounts, processes and the host's name; in there the packages' files lie over those of the machine, what is written
//! to `/etc`, `/usr` and `/var` goes to memory, and `/run` is empty. The network and `/tmp` are the machine's, so that guests
//! reach a switch outside, and `/run/libvirt` is in `/tmp`, so that another such host reaches the daemon. When the value is
//! dropped, that process is killed, and everything that was started in there with it.
//!
//! ```text
//! unshare ── sh (reaps orphans) ── virtlogd, libvirtd ── hook ── back end
//!    └ nsenter ── virsh ...                     └ QEMU
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::machine::Kernel;
use crate::{Console, Switch, places, process};

const LIMIT: Duration = Duration::from_secs(60);

/// Where a guest's kernel and initial memory disk are in there.
pub const BOOT: &str = "/var/lib/libvirt/boot";

/// Which libvirt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// That of the backports of Debian 12, 11.3.
    V11,
    /// Debian 12's own, 9.0.
    V9,
}

impl Version {
    /// Where its packages are unpacked.
    pub fn tree(self) -> Result<PathBuf> {
        match self {
            Self::V11 => places::made("libvirt-11"),
            Self::V9 => places::made("libvirt-9"),
        }
    }
}

/// An ordinary user in there, with a session of the own.
const USER: &str = "alice";
const USER_ID: u32 = 64066;

/// What is done before the daemons can start. `$1` is the packages' tree, `$2` the folder of the test.
const SET_UP: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs none /mnt
for name in etc usr var; do
    mkdir -p /mnt/$name/upper /mnt/$name/work
    mount -t overlay -o "lowerdir=$1/$name:/$name,upperdir=/mnt/$name/upper,workdir=/mnt/$name/work" none /$name
done
mount -t tmpfs none /run
mkdir /run/libvirt "$2/libvirt"
mount --bind "$2/libvirt" /run/libvirt
# Hosts are told apart by both when a domain moves.
hostname "${2##*/}"
echo "host_uuid = \"$(cat /proc/sys/kernel/random/uuid)\"" >>/etc/libvirt/libvirtd.conf
# Groups of processes are the whole machine's, and would stay.
if mountpoint -q /sys/fs/cgroup; then umount --recursive /sys/fs/cgroup; fi
getent group kvm >/dev/null || echo 'kvm:x:64054:' >>/etc/group
echo 'libvirt-qemu:x:64055:libvirt-qemu' >>/etc/group
echo "libvirt-qemu:x:64055:$(getent group kvm | cut -d: -f3)::/var/lib/libvirt:/usr/sbin/nologin" >>/etc/passwd
chown -R libvirt-qemu: /var/lib/libvirt/qemu
echo 'alice:x:64066:' >>/etc/group
echo "alice:x:64066:64066::$2/alice:/bin/sh" >>/etc/passwd
mkdir -p "$2/alice" /run/user/64066 /etc/libvirt/hooks/qemu.d
chown alice: "$2/alice" /run/user/64066
chmod 700 /run/user/64066
touch "$2/ready"
sleep infinity &
wait $!
"#;

/// Each has daemons and guests; more at a time only wait for each other. Of two, one often waits for a time limit.
static TWO_AT_A_TIME: [Mutex<()>; 2] = [const { Mutex::new(()) }; 2];
static STARTED: AtomicUsize = AtomicUsize::new(0);

/// A complete domain of the documentation, by its name.
pub fn documented(name: &str) -> Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the crate lies below the root")?;
    let text = fs::read_to_string(root.join("docs/libvirt.md"))?;
    let blocks = text.split("```xml\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0));
    let title = format!("<name>{name}</name>");
    let found = blocks.into_iter().find(|block| block.contains(&title));
    found.map(str::to_owned).with_context(|| format!("docs/libvirt.md has no domain {name}"))
}

/// A switch that everybody may join, and its locator.
pub fn reachable() -> Result<(Switch, String)> {
    visible(Switch::start_with(&["-m", "0666"])?)
}

fn visible(switch: Switch) -> Result<(Switch, String)> {
    let path = switch.path();
    let folder = path.parent().context("a switch has a folder")?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    Ok((switch, format!("vde://{}", path.display())))
}

/// A running libvirt.
pub struct Libvirt {
    leader: process::Owned,
    /// The process in there, as it is called out here.
    inside: u32,
    folder: TempDir,
    _place: Option<MutexGuard<'static, ()>>,
}

impl Libvirt {
    /// Starts the system's daemon. Guests' files are in [`BOOT`].
    pub fn start(version: Version) -> Result<Self> {
        let [one, other] = &TWO_AT_A_TIME;
        let place = if STARTED.fetch_add(1, Relaxed).is_multiple_of(2) { one } else { other };
        Self::start_one(version, Some(place.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn start_one(version: Version, place: Option<MutexGuard<'static, ()>>) -> Result<Self> {
        let tree = version.tree()?;
        let folder = tempfile::Builder::new().prefix("vdelv").tempdir_in("/tmp")?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
        let child = Command::new("unshare")
            .args([
                "--mount",
                "--uts",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-c",
                SET_UP,
                "sh",
            ])
            .arg(&tree)
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("the program unshare (package util-linux)")?;
        let mut leader = process::Owned::new(child, "unshare");
        let inside = process::wait_until("a world of its own for libvirt (as root?)", LIMIT, || {
            if let Some(status) = leader.ended()? {
                bail!("unshare ended with {status}: mount namespaces and overlayfs are needed, as root");
            }
            let pid = leader.pid();
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
            let first = children.split_whitespace().next().and_then(|word| word.parse().ok());
            Ok(first.filter(|_| folder.path().join("ready").exists()))
        })?;
        let libvirt = Self { leader, inside, folder, _place: place };
        libvirt.run_ok(&["mkdir", "-p", BOOT])?;
        let image = Kernel::Linux6_1.image()?;
        for name in ["vmlinuz", "initrd"] {
            libvirt.run_ok(&["cp", &image.join(name).to_string_lossy(), BOOT])?;
        }
        libvirt.run_ok(&["virtlogd", "-d"])?;
        libvirt.start_daemon()?;
        Ok(libvirt)
    }

    /// The same, with the hook where the administrator would have it, and `vdectl`.
    pub fn with_hook(version: Version) -> Result<Self> {
        Self::start(version)?.hooked()
    }

    /// Another host with the hook, for the test that has this one already.
    pub fn another_host(&self, version: Version) -> Result<Self> {
        Self::start_one(version, None)?.hooked()
    }

    fn hooked(self) -> Result<Self> {
        for program in ["vhost-user-vde", "vde-libvirt-hook", "vdectl"] {
            self.install(program, program)?;
        }
        self.run_ok(&["ln", "-s", "/usr/local/bin/vde-libvirt-hook", "/etc/libvirt/hooks/qemu.d/vde"])?;
        // Hooks are looked for when the daemon starts.
        self.run_ok(&["pkill", "-9", "-x", "libvirtd"])?;
        self.start_daemon()?;
        Ok(self)
    }

    /// Starts the system's daemon again, after it was killed, and waits until it has taken up the domains that run.
    pub fn start_daemon(&self) -> Result<()> {
        // One that was killed has its PID file locked for a moment.
        process::wait_until("the end of libvirtd", LIMIT, || {
            Ok(self.processes("libvirtd")?.is_empty().then_some(()))
        })?;
        self.run_ok(&["libvirtd", "-d"])?;
        process::wait_until("libvirtd", LIMIT, || {
            let output = self.run(&["virsh", "version"])?;
            Ok(output.status.success().then_some(()))
        })?;
        // It does so, the hook's part included, as a job; what asks QEMU something has to wait for that. Some do not live on.
        let domains = self.virsh(&["list", "--name"])?;
        domains.split_whitespace().try_for_each(|domain| self.run(&["virsh", "dommemstat", domain]).map(drop))
    }

    /// Puts one of our own programs where the administrator would, under a name of `/usr/local/bin`.
    pub fn install(&self, program: &str, name: &str) -> Result<()> {
        let program = places::own_program(program)?;
        self.run_ok(&["cp", &program.to_string_lossy(), &format!("/usr/local/bin/{name}")]).map(drop)
    }

    /// A switch that QEMU's user may join, as the documentation has it.
    pub fn switch(&self) -> Result<Switch> {
        // The group comes with udev, which not every container has.
        let has_group = fs::read_to_string("/etc/group")?.lines().any(|line| line.starts_with("kvm:"));
        let options: &[&str] = if has_group { &["-m", "660", "-g", "kvm"] } else { &["-m", "666"] };
        let (switch, _) = visible(Switch::start_with(options)?)?;
        self.place(&switch)?;
        Ok(switch)
    }

    /// Has a switch where the documentation has it.
    pub fn place(&self, switch: &Switch) -> Result<()> {
        self.run_ok(&["mkdir", "-p", "/run/vde"])?;
        self.run_ok(&["ln", "-sfn", &switch.path().to_string_lossy(), "/run/vde/lab"]).map(drop)
    }

    /// A folder that everybody may write to, which is the same in there and out here.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A command in there, as root.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.inside.to_string(), "--mount", "--uts", "--pid"]).args(words);
        command.env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        // A daemon keeps what it inherits: files, whose end nobody waits for.
        let (out, err) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let mut command = self.command(words);
        command.stdout(out.try_clone()?).stderr(err.try_clone()?);
        let mut child = process::Owned::new(command.spawn()?, &words.join(" "));
        let status = child.wait(Duration::from_secs(120))?;
        Ok(Output { status, stdout: whole(out)?, stderr: whole(err)? })
    }

    /// Runs a command that must succeed, and gives what it wrote.
    pub fn run_ok(&self, words: &[&str]) -> Result<String> {
        let output = self.run(words)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} ended with {}: {said}", words.join(" "), output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `virsh` with the system's daemon.
    pub fn virsh(&self, words: &[&str]) -> Result<String> {
        self.run_ok(&[&["virsh"], words].concat())
    }

    /// `virsh` with the session daemon of an ordinary user.
    pub fn virsh_of_user(&self, words: &[&str]) -> Result<String> {
        self.run_ok(&self.as_user(&[&["virsh", "-c", "qemu:///session"], words].concat()))
    }

    /// The words that run a command as an ordinary user who is logged in.
    pub fn as_user<'a>(&self, words: &[&'a str]) -> Vec<&'a str> {
        // The shell knows the home directory.
        let log_in =
            "export HOME=~alice USER=alice LOGNAME=alice XDG_RUNTIME_DIR=/run/user/64066; exec \"$@\"";
        let become_user =
            ["setpriv", "--reuid=64066", "--regid=64066", "--groups=kvm", "sh", "-c", log_in, "sh"];
        [&become_user, words].concat()
    }

    /// The ordinary user's home directory, and number.
    pub fn user(&self) -> (PathBuf, u32) {
        (self.folder().join(USER), USER_ID)
    }

    /// `vdectl` as root.
    pub fn vdectl(&self, words: &[&str]) -> Result<String> {
        self.run_ok(&[&["vdectl"], words].concat())
    }

    /// The shell of a domain's guest.
    pub fn console(&self, domain: &str) -> Result<Console> {
        Console::open(&self.virsh(&["ttyconsole", domain])?)
    }

    /// By what the daemon of another host reaches that of this one.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}/libvirt/libvirt-sock", self.folder().display())
    }

    /// Waits until nothing is left of any domain of the system's daemon: no back end, no socket, no other file.
    pub fn wait_nothing_left(&self) -> Result<()> {
        process::wait_until("nothing to be left", LIMIT, || {
            let processes = self.processes("vhost-user-vde")?;
            // It fails while somebody removes what it looks at.
            let found =
                self.run(&["sh", "-c", "! [ -e /run/vdeq/libvirt ] || find /run/vdeq/libvirt -mindepth 1"])?;
            let is_empty = found.status.success() && found.stdout.is_empty();
            Ok((processes.is_empty() && is_empty).then_some(()))
        })
    }

    /// Defines a domain.
    pub fn define(&self, xml: &str) -> Result<()> {
        let file = self.write("domain.xml", xml)?;
        self.virsh(&["define", &file]).map(drop)
    }

    /// Writes a file that everybody may read, and gives its path.
    pub fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.folder().join(name);
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// The numbers, as seen in there, of the processes with this name.
    pub fn processes(&self, name: &str) -> Result<Vec<u32>> {
        // Status 1: there is none.
        let output = self.run(&["pgrep", "-x", name])?;
        let text = String::from_utf8(output.stdout)?;
        Ok(text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    }

    /// The process id of the whole, for messages.
    pub fn pid(&self) -> u32 {
        self.leader.pid()
    }
}

fn whole(mut file: fs::File) -> Result<Vec<u8>> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
