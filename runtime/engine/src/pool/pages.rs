//! States of pages.
//!
//! Invariant: a page is in `free`, or in `eviction` (it has a key and no holder), or has holders; never in two of them. A key
//! leads to at most one page.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use super::PageCounts;
use super::key::BlockKey;

/// How long a cached page keeps its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Keep {
    /// Until the next page is needed: it fell behind a window.
    Least,
    /// Until it is the least recently used.
    Usual,
}

/// When a page is evicted: the smallest first. The number counts up with every page given back, so no two are equal.
type Turn = (Keep, u64);

#[derive(Clone, Copy, Debug, Default)]
struct Page {
    holders: usize,
    key: Option<BlockKey>,
    /// Its place in the order of eviction, while it is cached.
    turn: Option<Turn>,
}

#[derive(Debug)]
pub(super) struct Pages {
    pages: Vec<Page>,
    free: Vec<usize>,
    eviction: BTreeMap<Turn, usize>,
    by_key: HashMap<BlockKey, usize>,
    given_back: u64,
}

impl Pages {
    pub(super) fn new(count: usize) -> Self {
        Self {
            pages: vec![Page::default(); count],
            // The lowest number is taken first.
            free: (0..count).rev().collect(),
            eviction: BTreeMap::new(),
            by_key: HashMap::new(),
            given_back: 0,
        }
    }

    pub(super) fn counts(&self) -> PageCounts {
        let (free, cached) = (self.free.len(), self.eviction.len());
        PageCounts { free, cached, used: self.pages.len().saturating_sub(free).saturating_sub(cached) }
    }

    /// Pages that can be taken.
    pub(super) fn available(&self) -> usize {
        self.free.len().saturating_add(self.eviction.len())
    }

    /// A page for one holder, with nothing in it.
    pub(super) fn take(&mut self) -> Option<usize> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.eviction.pop_first()?;
                if let Some(key) = self.pages[page].key {
                    self.by_key.remove(&key);
                }
                page
            }
        };
        self.pages[page] = Page { holders: 1, key: None, turn: None };
        Some(page)
    }

    pub(super) fn contains(&self, key: BlockKey) -> bool {
        self.by_key.contains_key(&key)
    }

    /// The page with this key, for one holder more.
    pub(super) fn share(&mut self, key: BlockKey) -> Option<usize> {
        let number = *self.by_key.get(&key)?;
        let page = &mut self.pages[number];
        if let Some(turn) = page.turn.take() {
            self.eviction.remove(&turn);
        }
        page.holders += 1;
        Some(number)
    }

    /// Says what a held page holds. If another page holds the same, that one stays the one to be found.
    pub(super) fn name(&mut self, number: usize, key: BlockKey) {
        if let Entry::Vacant(place) = self.by_key.entry(key) {
            place.insert(number);
            self.pages[number].key = Some(key);
        }
    }

    /// One holder less.
    pub(super) fn give_back(&mut self, number: usize, keep: Keep) {
        let page = &mut self.pages[number];
        page.holders = page.holders.saturating_sub(1);
        if page.holders > 0 {
            return;
        }
        if page.key.is_none() {
            self.free.push(number);
            return;
        }
        self.given_back += 1;
        let turn = (keep, self.given_back);
        page.turn = Some(turn);
        self.eviction.insert(turn, number);
    }

    /// Treats a page that is still cached as if it had been given back just now.
    pub(super) fn refresh(&mut self, key: BlockKey) {
        let Some(&number) = self.by_key.get(&key) else { return };
        if let Some(turn) = self.pages[number].turn {
            self.eviction.remove(&turn);
            self.given_back += 1;
            let turn = (Keep::Usual, self.given_back);
            self.pages[number].turn = Some(turn);
            self.eviction.insert(turn, number);
        }
    }
}
