//! What the back end is told that concerns all NICs of a VM.

use serde::Serialize;

/// How much the back end says on standard error, by the names that it has for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What went wrong.
    Error,
    /// What is odd, too.
    Warn,
    /// Comings and goings, too.
    Info,
    /// Messages of the front end, too.
    Debug,
}

impl LogLevel {
    const ALL: [Self; 5] = [Self::Off, Self::Error, Self::Warn, Self::Info, Self::Debug];

    /// The level with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// The settings; what is not set is the back end's to decide.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// For how many microseconds it looks for frames after the last one.
    pub poll_us: Option<u64>,
    /// The guest is not offered to leave checksums and segmentation to others.
    pub no_offloads: bool,
    /// A network that cannot be joined is tried again instead of refused.
    pub keep_going: bool,
    /// What it logs.
    pub log: Option<LogLevel>,
    /// The file that frames are written to.
    pub capture: Option<String>,
}

impl Settings {
    /// The back end's options for them.
    pub fn arguments(&self) -> Vec<String> {
        let mut words = Vec::new();
        let mut option = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                words.extend([name.to_owned(), value]);
            }
        };
        option("--poll-us", self.poll_us.map(|number| number.to_string()));
        option("--log-level", self.log.map(|level| level.name().to_owned()));
        option("--capture", self.capture.clone());
        let switches = [("--no-offloads", self.no_offloads), ("--keep-going", self.keep_going)];
        words.extend(switches.into_iter().filter(|(_, on)| *on).map(|(name, _)| name.to_owned()));
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_say_only_what_was_asked_for() {
        assert!(Settings::default().arguments().is_empty());
        let settings = Settings {
            poll_us: Some(50),
            no_offloads: true,
            keep_going: true,
            log: LogLevel::named("info"),
            capture: Some("/tmp/a b".into()),
        };
        let expected = "--poll-us|50|--log-level|info|--capture|/tmp/a b|--no-offloads|--keep-going";
        assert_eq!(settings.arguments().join("|"), expected);
    }

    #[test]
    fn named_knows_all_levels_and_no_other() {
        assert!(LogLevel::ALL.into_iter().all(|level| LogLevel::named(level.name()) == Some(level)));
        assert_eq!(LogLevel::named("loud"), None);
    }
}
