//! `{% generation %}`, a tag of Hugging Face's that marks what an assistant said.

/// Makes blocks of `generation` blocks of `with`, which do the same to a prompt: nothing, but for names set within.
pub(super) fn replace(template: &str) -> String {
    let mut replaced = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        replaced.push_str(before);
        rest = tag;
        let marks = |c: char| matches!(c, '-' | '+');
        let name = rest.trim_start_matches(marks).trim_start();
        for (from, to) in [("generation", "with"), ("endgeneration", "endwith")] {
            let Some(after) = name.strip_prefix(from) else { continue };
            if after.trim_start().trim_start_matches(marks).starts_with("%}") {
                // What stands between the bracket and the name is kept: it says what happens to space around the tag.
                replaced.push_str(&rest[..rest.len() - name.len()]);
                replaced.push_str(to);
                rest = after;
                break;
            }
        }
    }
    replaced + rest
}

#[cfg(test)]
mod tests {
    use super::replace;

    #[test]
    fn only_the_tag_changes() {
        let template =
            "{%- generation -%}generation{%endgeneration+%}{% generations %}{{ generation }}{% set generation = 1 %}{%";
        let expected = "{%- with -%}generation{%endwith+%}{% generations %}{{ generation }}{% set generation = 1 %}{%";
        assert_eq!(replace(template), expected);
    }
}
