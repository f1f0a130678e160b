//! tmp
use anyhow::Result;
#[derive(clap::Args, Clone)]
pub struct Args {}
pub fn run(_a: &Args) -> Result<()> {
    Ok(())
}
