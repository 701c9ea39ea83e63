#![allow(missing_docs)]
pub enum Target {
    Cpu,
}
pub struct Found {
    pub path: std::path::PathBuf,
}
pub fn find(_: Target) -> Result<Option<Found>, crate::Error> {
    Ok(std::env::var_os("GEMMA4CTL_PJRT_CPU").map(|p| Found { path: p.into() }))
}
