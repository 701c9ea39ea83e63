//! The inside of a thought: the name of its channel, which is no part of it, and blanks at its end.

/// How the channel of thoughts begins.
const LABEL: &str = "thought\n";

/// A thought that is being written.
#[derive(Clone, Debug, Default)]
pub(super) struct Thought {
    /// Text that is the beginning of the label, while it is.
    label: String,
    /// Whether the label is behind.
    begun: bool,
    /// Blanks that are dropped if nothing follows.
    blanks: String,
}

impl Thought {
    pub(super) fn push(&mut self, text: &str, out: &mut String) {
        if self.begun {
            return self.give(text, out);
        }
        self.label += text;
        if let Some(rest) = self.label.strip_prefix(LABEL) {
            let rest = rest.to_owned();
            self.begun = true;
            self.give(&rest, out);
        } else if !LABEL.starts_with(&self.label) {
            // Another name is a part of the thought.
            let all = std::mem::take(&mut self.label);
            self.begun = true;
            self.give(&all, out);
        }
    }

    /// The thought is over. A label without its line's end is one all the same.
    pub(super) fn end(&mut self, out: &mut String) {
        if !self.begun && self.label != LABEL.trim_end() {
            out.push_str(&self.label);
        }
    }

    fn give(&mut self, text: &str, out: &mut String) {
        let kept = text.trim_end();
        if kept.is_empty() {
            self.blanks += text;
            return;
        }
        let (kept, blanks) = text.split_at(kept.len());
        *out += &std::mem::replace(&mut self.blanks, blanks.to_owned());
        *out += kept;
    }
}
