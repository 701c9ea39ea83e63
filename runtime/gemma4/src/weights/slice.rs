//! Which elements of a stored tensor a rank holds.

use std::ops::Range;

use crate::sharding::Placement;
use crate::tensors::Tensor;

/// Runs of elements, the same ones in each of `outer` blocks of `stride` elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Slice {
    outer: usize,
    stride: usize,
    /// Ascending, apart from each other, within the stride.
    runs: Vec<Range<usize>>,
}

impl Slice {
    /// The elements of `tensor` on `rank`. `None` if the placement is not one of this tensor.
    pub(super) fn new(tensor: &Tensor, placement: &Placement, rank: u64) -> Option<Self> {
        let size = |sizes: &[u64]| {
            let product = sizes.iter().try_fold(1_u64, |product, &size| product.checked_mul(size))?;
            usize::try_from(product).ok()
        };
        let total = size(&tensor.shape)?;
        let Some(dimension) = placement.split_dimension() else {
            return Some(Self::whole(total));
        };
        let outer = size(tensor.shape.get(..dimension)?)?;
        let inner = size(tensor.shape.get(dimension.checked_add(1)?..)?)?;
        let stride = size(tensor.shape.get(dimension..)?)?;
        let mut runs: Vec<Range<usize>> = Vec::new();
        for rows in placement.source_ranges(tensor, rank) {
            let start = usize::try_from(rows.start).ok()?.checked_mul(inner)?;
            let end = usize::try_from(rows.end).ok()?.checked_mul(inner)?;
            match runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => runs.push(start..end),
            }
        }
        let fits = runs.is_sorted_by(|one, other| one.end < other.start) && runs.last()?.end <= stride;
        let slice = Self { outer, stride, runs };
        let expected = size(&placement.local_shape)?;
        if !fits || slice.elements() != expected {
            return None;
        }
        Some(if expected == total { Self::whole(total) } else { slice })
    }

    fn whole(elements: usize) -> Self {
        let all = 0..elements;
        Self { outer: 1, stride: elements, runs: vec![all] }
    }

    /// Number of elements.
    pub(super) fn elements(&self) -> usize {
        self.runs.iter().map(Range::len).sum::<usize>().saturating_mul(self.outer)
    }

    /// The elements as one run, if they are one.
    pub(super) fn in_one_piece(&self) -> Option<Range<usize>> {
        match self.runs.as_slice() {
            [run] if self.outer == 1 => Some(run.clone()),
            _ => None,
        }
    }

    /// From the first element to the last.
    pub(super) fn extent(&self) -> Range<usize> {
        let start = self.runs.first().map_or(0, |run| run.start);
        let end = self.runs.last().map_or(0, |run| run.end);
        let before_last = self.outer.saturating_sub(1).saturating_mul(self.stride);
        start..before_last.saturating_add(end)
    }

    /// All runs in the order in which the rank holds them.
    pub(super) fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        (0..self.outer).flat_map(|block| {
            let at = block.saturating_mul(self.stride);
            self.runs.iter().map(move |run| at.saturating_add(run.start)..at.saturating_add(run.end))
        })
    }
}
