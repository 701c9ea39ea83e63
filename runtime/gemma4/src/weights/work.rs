//! What a load has to produce, decided before any byte is read.
//!
//! Invariant: for the ranks asked for, every part of every tensor is in the list exactly once. Ranks that hold the same
//! part (norms, replicated key and value heads) share it.

use std::ops::Range;

use super::bytes::{Buffer, FileBytes, LocalBytes};
use super::convert::Conversion;
use super::error::WeightsError;
use super::load::{Layout, LoadOptions, Target};
use super::open::Checkpoint;
use super::quantize::Rows;
use super::slice::Slice;
use crate::DType;
use crate::checkpoint::Matched;
use crate::quantization::{Array, arrays, of_rows};
use crate::sharding::{Placement, ShardingError, place};
use crate::tensors::Role;

/// A part to produce.
pub(super) struct Work<'a> {
    /// One tensor, or the layers of a stack in order.
    pub(super) members: Vec<Member<'a>>,
    /// Of each member.
    pub(super) placement: Placement,
    /// Whether the shape has the members as first dimension.
    pub(super) stacked: bool,
    pub(super) ranks: Vec<u64>,
    /// Of each member.
    pub(super) array: Array,
    /// The rows that are quantized.
    quantized: Option<Rows>,
    /// Which elements, also where the array has words or scales of groups of them; which rows, where it has a number for each.
    slice: Slice,
}

/// A tensor of a part, and how its elements get their type.
pub(super) struct Member<'a> {
    pub(super) matched: &'a Matched,
    conversion: Conversion,
}

impl<'a> Work<'a> {
    /// One part for each group of `ranks` that hold the same elements of these tensors, which are alike in shape and role.
    fn push(
        list: &mut Vec<Self>,
        checkpoint: &Checkpoint,
        target: &Target,
        ranks: &[u64],
        group: (&[&'a Matched], bool),
    ) -> Result<(), WeightsError> {
        let Some(first) = group.0.first() else { return Ok(()) };
        let placement = place(checkpoint.config(), &first.tensor, &target.mesh, target.experts)?;
        for array in arrays(&first.tensor, &placement, target.dtype, target.quantization) {
            Self::push_array(list, target, ranks, group, (&placement, array))?;
        }
        Ok(())
    }

    /// One part for each group of `ranks` that hold the same of one array.
    fn push_array(
        list: &mut Vec<Self>,
        target: &Target,
        ranks: &[u64],
        (matched, stacked): (&[&'a Matched], bool),
        (placement, array): (&Placement, Array),
    ) -> Result<(), WeightsError> {
        let Some(first) = matched.first() else { return Ok(()) };
        let quantized = Rows::of(&first.tensor, placement, &array, target.quantization);
        let (tensor, split) = if quantized.is_some_and(Rows::are_wanted) {
            of_rows(&first.tensor, placement)
        } else {
            (first.tensor.clone(), placement.clone())
        };
        // Rows are quantized as float32, whatever they are stored as.
        let dtype = if quantized.is_some() { DType::F32 } else { target.dtype };
        let mut parts: Vec<(Slice, Vec<u64>)> = Vec::new();
        for &rank in ranks {
            let slice = Slice::new(&tensor, &split, rank);
            let slice = slice.ok_or_else(|| ShardingError::Foreign { tensor: first.tensor.name.clone() })?;
            match parts.iter_mut().find(|(known, _)| *known == slice) {
                Some((_, ranks)) => ranks.push(rank),
                None => parts.push((slice, vec![rank])),
            }
        }
        for (slice, ranks) in parts {
            let members = matched.iter().map(|matched| Member::new(matched, dtype));
            list.push(Self {
                members: members.collect::<Result<_, _>>()?,
                placement: placement.clone(),
                stacked,
                ranks,
                array: array.clone(),
                quantized,
                slice,
            });
        }
        Ok(())
    }

    /// Shape of the part on a device.
    pub(super) fn shape(&self) -> Vec<u64> {
        let layers = self.stacked.then_some(self.members.len() as u64);
        layers.into_iter().chain(self.array.shape.iter().copied()).collect()
    }

    /// Bytes of the part in the type asked for.
    pub(super) fn bytes(&self) -> u64 {
        self.array.bytes().saturating_mul(self.members.len() as u64)
    }

    /// Bytes of the buffer that the part needs; 0 if the file itself can be handed out.
    pub(super) fn buffer_bytes(&self) -> u64 {
        if self.borrowable().is_some() { 0 } else { self.bytes() }
    }

    /// Whether the part can be handed out as it lies in a file, and a device can take it over there.
    pub(super) fn is_aligned(&self, checkpoint: &Checkpoint) -> bool {
        self.borrowable().is_some()
            && self.produce(checkpoint).is_ok_and(|bytes| bytes.alignment() >= super::bytes::OWNED_ALIGNMENT)
    }

    fn borrowable(&self) -> Option<(&Member<'a>, Range<usize>)> {
        match self.members.as_slice() {
            [member] if member.conversion == Conversion::Same && self.quantized.is_none() => {
                Some((member, self.slice.in_one_piece()?))
            }
            _ => None,
        }
    }

    /// What is read of each file, from the first byte to the last.
    pub(super) fn extents(&self) -> impl Iterator<Item = (&'a Matched, Range<usize>)> {
        let extent = self.slice.extent();
        let extent = self.quantized.map_or(extent.clone(), |rows| rows.read_for(extent));
        self.members.iter().map(move |member| (member.matched, member.in_bytes(extent.clone())))
    }

    /// Sum of the lengths of [`Self::extents`].
    pub(super) fn extent_bytes(&self) -> u64 {
        self.extents().fold(0, |sum, (_, extent)| sum.saturating_add(extent.len() as u64))
    }

    /// Borrows or copies the elements.
    pub(super) fn produce(&self, checkpoint: &Checkpoint) -> Result<LocalBytes, WeightsError> {
        if let Some((member, run)) = self.borrowable() {
            let (file, tensor) = checkpoint.place_of(member.matched)?;
            let range = member.in_bytes(run);
            let range = tensor.start.saturating_add(range.start)..tensor.start.saturating_add(range.end);
            return LocalBytes::borrowed(file, range).ok_or_else(|| checkpoint.changed(member.matched));
        }
        let bytes = self.bytes();
        let refused = || {
            let tensor = self.members.first().map(|member| member.matched.tensor.name.clone());
            WeightsError::Memory { tensor: tensor.unwrap_or_default(), bytes }
        };
        let length = usize::try_from(bytes).map_err(|_| refused())?;
        let mut buffer = Buffer::with_capacity(length).map_err(|_| refused())?;
        for member in &self.members {
            let (file, tensor) = checkpoint.place_of(member.matched)?;
            let stored = stored(file, tensor);
            for run in self.slice.runs() {
                let changed = || checkpoint.changed(member.matched);
                let Some(rows) = self.quantized else {
                    let run = stored.get(member.in_bytes(run)).ok_or_else(changed)?;
                    member.conversion.append(run, buffer.content());
                    continue;
                };
                let row = |row| stored.get(member.in_bytes(row));
                rows.append(
                    run,
                    |elements, into| row(elements).map(|row| member.conversion.append(row, into)),
                    buffer.content(),
                )
                .ok_or_else(changed)?;
            }
        }
        Ok(LocalBytes::owned(buffer))
    }
}

fn stored(file: &FileBytes, tensor: Range<usize>) -> &[u8] {
    file.as_ref().as_ref().get(tensor).unwrap_or_default()
}

impl<'a> Member<'a> {
    fn new(matched: &'a Matched, to: DType) -> Result<Self, WeightsError> {
        let from = matched.entry.dtype;
        let refused = || WeightsError::Conversion { tensor: matched.tensor.name.clone(), from, to };
        let conversion = Conversion::between(from, to).ok_or_else(refused)?;
        Ok(Self { matched, conversion })
    }

    pub(super) fn is_converted(&self) -> bool {
        self.conversion != Conversion::Same
    }

    /// A range of elements as bytes of the stored tensor. Stored types have whole bytes, see
    /// [`STORED_TYPES`](crate::checkpoint::STORED_TYPES).
    fn in_bytes(&self, elements: Range<usize>) -> Range<usize> {
        let size = match self.matched.entry.dtype {
            DType::F32 => 4,
            _ => 2,
        };
        elements.start.saturating_mul(size)..elements.end.saturating_mul(size)
    }
}

/// All parts, in the order in which they lie in the files.
pub(super) fn list<'a>(
    checkpoint: &'a Checkpoint,
    target: &Target,
    options: &LoadOptions<'_>,
) -> Result<Vec<Work<'a>>, WeightsError> {
    let ranks = options.ranks;
    for (index, &rank) in ranks.iter().enumerate() {
        let repeated = ranks.iter().take(index).any(|&earlier| earlier == rank);
        if repeated || rank >= target.mesh.model {
            return Err(WeightsError::Rank { rank, devices: target.mesh.model });
        }
    }
    let mut list = Vec::new();
    for (members, stacked) in groups(checkpoint, options) {
        Work::push(&mut list, checkpoint, target, ranks, (&members, stacked))?;
    }
    list.sort_by_cached_key(|work| {
        let first = work.extents().next();
        first.map(|(matched, extent)| (matched.shard, matched.entry.offset.saturating_add(extent.start as u64)))
    });
    Ok(list)
}

/// The parts of one tensor for one rank.
pub(super) fn single<'a>(
    checkpoint: &'a Checkpoint,
    target: &Target,
    rank: u64,
    matched: &'a Matched,
) -> Result<Vec<Work<'a>>, WeightsError> {
    if rank >= target.mesh.model {
        return Err(WeightsError::Rank { rank, devices: target.mesh.model });
    }
    let mut list = Vec::new();
    Work::push(&mut list, checkpoint, target, &[rank], (&[matched], false))?;
    Ok(list)
}

/// Tensors that become one array, and whether that array has the layers as first dimension.
fn groups<'a>(checkpoint: &'a Checkpoint, options: &LoadOptions<'_>) -> Vec<(Vec<&'a Matched>, bool)> {
    let alike = checkpoint.config().text.alike_layers();
    let mut stacks: Vec<((Role, usize), usize)> = Vec::new();
    let mut groups: Vec<(Vec<&'a Matched>, bool)> = Vec::new();
    let wanted = |matched: &&Matched| !options.without.contains(&matched.tensor.role);
    for matched in checkpoint.matched().iter().filter(wanted) {
        let layer =
            matched.tensor.layer.filter(|_| options.layout == Layout::Stacked && matched.tensor.component.is_text());
        let Some(kind) = layer.and_then(|layer| alike.iter().position(|stack| stack.contains(&layer))) else {
            groups.push((vec![matched], false));
            continue;
        };
        let key = (matched.tensor.role, kind);
        match stacks.iter().find(|(known, _)| *known == key).and_then(|(_, group)| groups.get_mut(*group)) {
            Some((members, _)) => members.push(matched),
            None => {
                stacks.push((key, groups.len()));
                groups.push((vec![matched], true));
            }
        }
    }
    groups
}
