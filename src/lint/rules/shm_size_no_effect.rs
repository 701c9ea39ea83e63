//! A size for a /dev/shm that the container does not have.

use super::prelude::*;

rule!("shm-size-no-effect", Info, "`shm_size` does nothing where the host's /dev/shm is mounted");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let Some(docker) = context.docker() else { return };
    let Some(size) = docker.shm_size.get() else { return };
    if docker.share_dev_shm.get() != Some(&true) {
        return;
    }
    findings.push(
        RULE.finding(
            context.at("deploy.docker.shm_size"),
            format!("`share_dev_shm` mounts the host's /dev/shm, so the size {size} has no effect"),
        )
        .help("take `shm_size` out; the host's /dev/shm is as large as the host made it, half of its RAM as a rule"),
    );
}
