//! What shells complete: the commands and options of our programs.

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};

/// Name and text of each script, by the names under which the shells look for them.
pub fn scripts() -> Vec<(String, Vec<u8>)> {
    let shells = [Shell::Bash, Shell::Zsh, Shell::Fish];
    let programs: [fn() -> Command; 2] = [vdectl::cli::Cli::command, vhost_user_vde::cli::Cli::command];
    let mut scripts = Vec::new();
    for program in programs {
        for shell in shells {
            let (mut command, mut text) = (program(), Vec::new());
            let name = command.get_name().to_owned();
            generate(shell, &mut command, &name, &mut text);
            let file = match shell {
                Shell::Bash => name,
                Shell::Zsh => format!("_{name}"),
                _ => format!("{name}.fish"),
            };
            scripts.push((file, text));
        }
    }
    scripts
}
