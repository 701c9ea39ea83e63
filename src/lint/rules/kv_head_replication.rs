//! KV heads that stand on several devices.

use super::prelude::*;

rule!("kv-head-replication", Info, "KV heads that are kept on several devices");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    let tp = u64::from(resolved.tensor);
    let heads: Vec<u64> = resolved.model.config.text.owning_layers().map(|(_, layer)| layer.kv_heads).collect();
    let replicated = heads.iter().filter(|&&heads| heads < tp).count();
    let Some(most) = heads.iter().copied().max() else { return };
    if replicated == 0 {
        return;
    }
    let message = if replicated == heads.len() {
        let heads = if most == 1 { "one KV head".to_owned() } else { format!("{most} KV heads") };
        format!(
            "no layer of {} has more than {heads}, and there are {tp} devices: a token's KV costs each of them as much as at tensor parallel size {most}",
            resolved.model.size
        )
    } else {
        format!(
            "{replicated} of the {} layers with a KV cache have fewer KV heads than {tp} devices, so their cache is kept more than once",
            heads.len()
        )
    };
    let finding = RULE.finding(context.at("parallelism.tensor"), message);
    findings.push(finding.help("more devices give more memory for the pool, not a smaller cache; `parallelism.data` splits requests without keeping KV twice"));
}
