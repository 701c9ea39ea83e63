//! Prompts of an exact number of tokens, no two of which begin alike.
//!
//! Prompts are token ids: text has a length in tokens that only its tokenizer knows, and joining pieces changes it. Each
//! prompt begins with its number in the sweep, written in tokens, so none begins as another does; the rest is drawn by
//! the seed.

/// Makes prompts out of tokens that the model has.
#[derive(Debug, Clone)]
pub(crate) struct Prompts {
    tokens: Vec<u32>,
    seed: u64,
    /// Tokens that a number takes.
    digits: usize,
}

impl Prompts {
    /// For so many prompts, of these tokens: two different ones at least.
    pub(crate) fn new(tokens: &[u32], seed: u64, prompts: u64) -> Self {
        let mut tokens = tokens.to_vec();
        tokens.sort_unstable();
        tokens.dedup();
        // Which token stands for which digit depends on the seed: runs with different seeds share no beginnings either.
        fastrand::Rng::with_seed(seed).shuffle(&mut tokens);
        let base = base(&tokens);
        let digits = (1..64).find(|digits| base.checked_pow(*digits).is_none_or(|numbers| numbers >= prompts));
        let digits = digits.map_or(64, |digits| digits as usize);
        Self { tokens, seed, digits }
    }

    /// Prompt number `number` of the sweep, with `length` tokens.
    pub(crate) fn prompt(&self, number: u64, length: u64) -> Vec<u32> {
        let base = base(&self.tokens);
        let mut rng = fastrand::Rng::with_seed(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut rest = number;
        // The lowest digit first, so that neighbours differ in their first token.
        let digits = (0..self.digits).map(|_| {
            let digit = rest % base;
            rest /= base;
            digit
        });
        let mut prompt: Vec<u64> = digits.collect();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        prompt.resize_with(length, || rng.u64(0..base));
        let token = |digit: u64| self.tokens.get(usize::try_from(digit).ok()?).copied();
        prompt.into_iter().filter_map(token).collect()
    }
}

fn base(tokens: &[u32]) -> u64 {
    u64::try_from(tokens.len()).unwrap_or(u64::MAX).max(2)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn prompts_have_their_length_and_begin_differently(
            seed in any::<u64>(), kinds in 2_u32..300, count in 1_u64..300, more in 0_u64..40,
        ) {
            let tokens: Vec<u32> = (5..5 + kinds).collect();
            let prompts = Prompts::new(&tokens, seed, count);
            let length = prompts.digits as u64 + more;
            let mut beginnings = HashSet::new();
            for number in 0..count {
                let prompt = prompts.prompt(number, length);
                prop_assert_eq!(prompt.len() as u64, length);
                prop_assert!(prompt.iter().all(|token| tokens.contains(token)));
                prop_assert!(beginnings.insert(prompt[..prompts.digits].to_vec()));
                prop_assert_eq!(&prompt, &Prompts::new(&tokens, seed, count).prompt(number, length));
            }
        }
    }

    #[test]
    fn a_prompt_shorter_than_its_number_still_has_its_length() {
        let prompts = Prompts::new(&[1, 2], 0, 1000);
        assert_eq!(prompts.prompt(999, 4).len(), 4);
    }
}
