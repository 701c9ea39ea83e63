//! Finding stop strings in text that comes in pieces.
//!
//! Invariant: what comes out does not depend on how the text was split, and never holds a part of a stop string that is
//! found later.
//!
//! One automaton of Knuth, Morris and Pratt for each string, all fed byte by byte. The string that ends first wins, and the
//! longest of those that end at the same byte. Bytes will do: in UTF-8 a character never begins inside of another, so a match
//! begins and ends at borders of characters.

/// Looks for stop strings.
#[derive(Clone, Debug)]
pub(crate) struct StopStrings {
    patterns: Vec<Pattern>,
    /// Whether the string that was found is part of the text.
    include: bool,
    /// The end of the text that may be the beginning of a stop string.
    held: String,
}

#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    /// For each length of a match, the length of the longest shorter match that ends at the same place.
    fallback: Vec<usize>,
    matched: usize,
}

/// What a piece of text led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Text that may be shown.
    pub(crate) text: String,
    /// The stop string that ends the text here.
    pub(crate) stop: Option<String>,
}

impl Pattern {
    fn new(text: String) -> Self {
        let bytes = text.as_bytes();
        let mut fallback = vec![0; bytes.len() + 1];
        let mut length = 0;
        for (index, byte) in bytes.iter().enumerate().skip(1) {
            while length > 0 && bytes.get(length) != Some(byte) {
                length = fallback.get(length).copied().unwrap_or_default();
            }
            if bytes.get(length) == Some(byte) {
                length += 1;
            }
            if let Some(entry) = fallback.get_mut(index + 1) {
                *entry = length;
            }
        }
        Self { text, fallback, matched: 0 }
    }

    /// Takes one byte; true if the pattern ends with it.
    fn push(&mut self, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        while self.matched > 0 && bytes.get(self.matched) != Some(&byte) {
            self.matched = self.fallback.get(self.matched).copied().unwrap_or_default();
        }
        if bytes.get(self.matched) == Some(&byte) {
            self.matched += 1;
        }
        self.matched == bytes.len()
    }
}

impl StopStrings {
    /// Looks for `strings`; empty ones are never found.
    pub(crate) fn new(strings: &[String], include: bool) -> Self {
        let patterns = strings.iter().filter(|text| !text.is_empty()).cloned().map(Pattern::new).collect();
        Self { patterns, include, held: String::new() }
    }

    /// Takes the next piece of text. After a stop was found there is no next one.
    pub(crate) fn push(&mut self, piece: &str) -> Found {
        if self.patterns.is_empty() {
            return Found { text: piece.to_owned(), stop: None };
        }
        let before = self.held.len();
        self.held.push_str(piece);
        for (index, byte) in piece.bytes().enumerate() {
            let mut found: Option<&Pattern> = None;
            for pattern in &mut self.patterns {
                if pattern.push(byte) && found.is_none_or(|other| other.text.len() < pattern.text.len()) {
                    found = Some(pattern);
                }
            }
            if let Some(pattern) = found {
                let stop = pattern.text.clone();
                let end = before + index + 1;
                let keep = if self.include { end } else { end.saturating_sub(stop.len()) };
                let mut text = std::mem::take(&mut self.held);
                text.truncate(keep);
                return Found { text, stop: Some(stop) };
            }
        }
        let hold = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or_default();
        let rest = self.held.split_off(self.held.len().saturating_sub(hold));
        Found { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// Text in which no stop string counts: it is shown, and nothing that began in it is found later.
    pub(crate) fn pass(&mut self, piece: &str) -> String {
        for pattern in &mut self.patterns {
            pattern.matched = 0;
        }
        std::mem::take(&mut self.held) + piece
    }

    /// The text ends: what was held back is no part of a stop string.
    pub(crate) fn finish(&mut self) -> String {
        self.pass("")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run<'a>(
        strings: &[String],
        include: bool,
        pieces: impl IntoIterator<Item = &'a str>,
    ) -> (String, Option<String>) {
        let mut stops = StopStrings::new(strings, include);
        let mut text = String::new();
        for piece in pieces {
            let found = stops.push(piece);
            text += &found.text;
            if found.stop.is_some() {
                return (text, found.stop);
            }
        }
        (text + &stops.finish(), None)
    }

    /// By looking at every prefix of the whole text.
    fn reference(strings: &[String], include: bool, text: &str) -> (String, Option<String>) {
        for (end, _) in text.char_indices().skip(1).chain([(text.len(), ' ')]) {
            let prefix = &text[..end];
            let found = strings.iter().filter(|stop| !stop.is_empty() && prefix.ends_with(stop.as_str()));
            if let Some(stop) = found.max_by_key(|stop| stop.len()) {
                let end = if include { end } else { end - stop.len() };
                return (text[..end].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_text(
            text in "[abé ]{0,40}",
            strings in prop::collection::vec("[abé]{0,5}", 0..5),
            include: bool,
            cuts in prop::collection::vec(0_usize..40, 0..12),
        ) {
            let characters: Vec<String> = text.chars().map(String::from).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(characters.len())).collect();
            cuts.extend([0, characters.len()]);
            cuts.sort_unstable();
            let pieces: Vec<String> = cuts.windows(2).map(|pair| characters[pair[0]..pair[1]].concat()).collect();
            let wanted = reference(&strings, include, &text);
            prop_assert_eq!(run(&strings, include, pieces.iter().map(String::as_str)), wanted.clone());
            prop_assert_eq!(run(&strings, include, characters.iter().map(String::as_str)), wanted);
        }

        /// Text that is shown stays right, whatever comes next.
        #[test]
        fn no_part_of_a_stop_string_shows(
            text in "[ab]{0,20}",
            next in "[ab]{0,6}",
            strings in prop::collection::vec("[ab]{1,4}", 1..4),
        ) {
            let mut stops = StopStrings::new(&strings, false);
            let mut shown = String::new();
            for (index, character) in text.char_indices() {
                let found = stops.push(&character.to_string());
                shown += &found.text;
                let whole = text[..=index].to_owned() + &next;
                prop_assert!(reference(&strings, false, &whole).0.starts_with(&shown));
                if found.stop.is_some() {
                    break;
                }
            }
        }
    }

    #[test]
    fn text_that_passes_hides_no_stop_string() {
        let mut stops = StopStrings::new(&["ab".to_owned()], false);
        assert_eq!(stops.pass("ab a"), "ab a");
        assert_eq!(stops.push("bab"), Found { text: "b".to_owned(), stop: Some("ab".to_owned()) });
    }
}
