//! Operations between devices. Invariant: groups name existing devices, each at most once, in groups of one size.
//!
//! On manual partitions every collective has a channel and global device ids; without them both plugins refuse or
//! take the ids for replicas. On replicas it has neither.

use super::{Combine, in_range, same_count};
use crate::attributes::{Attributes, integer, list};
use crate::builder::size;
use crate::{Builder, ElementType, HloError, Parallelism, Problem, Shape, Value};

/// Groups of devices that work together: partition numbers, or replica numbers on replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups(Vec<Vec<u32>>);

impl Groups {
    /// These groups. They are checked where they are used.
    pub fn new(groups: impl Into<Vec<Vec<u32>>>) -> Self {
        Self(groups.into())
    }

    /// All devices of a module in one group.
    pub fn all(parallelism: Parallelism) -> Self {
        Self(vec![(0..parallelism.devices()).collect()])
    }

    /// The size of each group.
    fn checked(&self, devices: u32) -> Result<u64, Problem> {
        let first = self.0.first().map_or(0, Vec::len);
        in_range("the size of a group", size(first), 1, devices.into())?;
        let mut seen = Vec::new();
        for group in &self.0 {
            same_count("the size of a group", group.len(), first)?;
            for device in group {
                in_range("a device", u64::from(*device), 0, u64::from(devices) - 1)?;
                seen.push(u64::from(*device));
            }
        }
        let found = seen.clone();
        seen.sort_unstable();
        seen.dedup();
        if seen.len() != found.len() {
            return Err(Problem::List { what: "the devices", found, wanted: "different from each other" });
        }
        same_count("the number of devices in all groups", seen.len(), usize::try_from(devices).unwrap_or(usize::MAX))?;
        Ok(size(first))
    }

    fn mlir(&self) -> String {
        let rows: Vec<String> = self.0.iter().map(|group| format!("[{}]", list(group))).collect();
        let columns = self.0.first().map_or(0, Vec::len);
        format!("dense<[{}]> : tensor<{}x{columns}xi64>", rows.join(", "), rows.len())
    }
}

impl Builder {
    /// Combines the tensors of each group's devices, element by element; every device gets the result.
    ///
    /// # Errors
    /// The groups do not hold each device once; the way to combine does not fit the element type.
    pub fn all_reduce(&mut self, operand: Value, groups: &Groups, combine: Combine) -> Result<Value, HloError> {
        let op = "all_reduce";
        let [from] = self.shapes_of(op, [operand])?;
        let given = [from.clone()];
        self.group_size(groups).and(combine.ordered()).map_err(|problem| self.error(op, &given, problem))?;
        let body = self.combination(op, combine, from.element())?;
        let attributes = self.channel(vec![("replica_groups", groups.mlir())], true);
        self.add_one(op, &[operand], &given, attributes, vec![body], from)
    }

    /// The tensors of each group's devices one after the other along `dim`, in the order of the group.
    ///
    /// # Errors
    /// The groups do not hold each device once; the dimension does not exist or is empty.
    pub fn all_gather(&mut self, operand: Value, dim: usize, groups: &Groups) -> Result<Value, HloError> {
        let count = self.group_size(groups);
        let attributes = self.channel(vec![("all_gather_dim", integer(dim)), ("replica_groups", groups.mlir())], true);
        self.one("all_gather", [operand], |[from]| {
            in_range("the size of a gathered dimension", from.dim(dim)?, 1, u64::MAX)?;
            let grown = from.dim(dim)?.checked_mul(count?).ok_or(Problem::Overflow { what: "the gathered size" })?;
            Ok((resized(from, &[(dim, grown)]), attributes))
        })
    }

    /// Combines the tensors of each group's devices; each device gets its part of the result along `dim`, in the order of
    /// the group.
    ///
    /// # Errors
    /// The groups do not hold each device once; the size of `dim` is no multiple of the group's, or 0.
    pub fn reduce_scatter(
        &mut self,
        operand: Value,
        dim: usize,
        groups: &Groups,
        combine: Combine,
    ) -> Result<Value, HloError> {
        let op = "reduce_scatter";
        let [from] = self.shapes_of(op, [operand])?;
        let given = [from.clone()];
        let shape = combine
            .ordered()
            .and_then(|()| divided(&from, dim, self.group_size(groups)?))
            .map_err(|problem| self.error(op, &given, problem))?;
        let body = self.combination(op, combine, from.element())?;
        let attributes = vec![("scatter_dimension", integer(dim)), ("replica_groups", groups.mlir())];
        let attributes = self.channel(attributes, true);
        self.add_one(op, &[operand], &given, attributes, vec![body], shape)
    }

    /// Cuts each device's tensor along `split_dim` into one part for each device of its group, and puts the parts that a
    /// device gets one after the other along `concat_dim`.
    ///
    /// # Errors
    /// The groups do not hold each device once; a dimension does not exist; the size of `split_dim` is no multiple of the
    /// group's, or 0.
    pub fn all_to_all(
        &mut self,
        operand: Value,
        split_dim: usize,
        concat_dim: usize,
        groups: &Groups,
    ) -> Result<Value, HloError> {
        let count = self.group_size(groups);
        let attributes = vec![
            ("split_dimension", integer(split_dim)),
            ("concat_dimension", integer(concat_dim)),
            ("split_count", integer(count.clone().unwrap_or(0))),
            ("replica_groups", groups.mlir()),
        ];
        let attributes = self.channel(attributes, false);
        self.one("all_to_all", [operand], |[from]| {
            let count = count?;
            let split = divided(from, split_dim, count)?;
            let grown =
                split.dim(concat_dim)?.checked_mul(count).ok_or(Problem::Overflow { what: "the gathered size" })?;
            Ok((resized(&split, &[(concat_dim, grown)]), attributes))
        })
    }

    /// Sends each device's tensor along the pairs (from, to). A device that nothing is sent to gets zeros.
    ///
    /// # Errors
    /// A device does not exist, or sends or gets twice.
    pub fn collective_permute(&mut self, operand: Value, pairs: &[(u32, u32)]) -> Result<Value, HloError> {
        let devices = u64::from(self.parallelism.devices());
        let rows: Vec<String> = pairs.iter().map(|(from, to)| format!("[{from}, {to}]")).collect();
        // An empty list has no nesting to tell its shape.
        let rows = if rows.is_empty() { String::new() } else { format!("[{}]", rows.join(", ")) };
        let text = format!("dense<{rows}> : tensor<{}x2xi64>", pairs.len());
        let attributes = self.channel(vec![("source_target_pairs", text)], false);
        self.one("collective_permute", [operand], |[from]| {
            let sources: Vec<u32> = pairs.iter().map(|(source, _)| *source).collect();
            let targets: Vec<u32> = pairs.iter().map(|(_, target)| *target).collect();
            for (what, ids) in [("the sources", sources), ("the targets", targets)] {
                let mut distinct = ids.iter().map(|id| u64::from(*id)).collect::<Vec<_>>();
                let found = distinct.clone();
                distinct.sort_unstable();
                distinct.dedup();
                if distinct.len() != found.len() {
                    return Err(Problem::List { what, found, wanted: "different from each other" });
                }
                for id in found {
                    in_range("a device", id, 0, devices - 1)?;
                }
            }
            Ok((from.clone(), attributes))
        })
    }

    /// The number of the partition that runs this (u32 scalar).
    ///
    /// # Errors
    /// None in practice; the signature is that of all operations.
    pub fn partition_id(&mut self) -> Result<Value, HloError> {
        self.add_one("partition_id", &[], &[], Vec::new(), Vec::new(), Shape::scalar(ElementType::U32))
    }

    /// The number of the replica that runs this (u32 scalar).
    ///
    /// # Errors
    /// None in practice; the signature is that of all operations.
    pub fn replica_id(&mut self) -> Result<Value, HloError> {
        self.add_one("replica_id", &[], &[], Vec::new(), Vec::new(), Shape::scalar(ElementType::U32))
    }

    fn group_size(&self, groups: &Groups) -> Result<u64, Problem> {
        groups.checked(self.parallelism.devices())
    }

    /// Adds what tells partitions from replicas: a channel of its own and, for the operations that know it, the flag.
    fn channel(&mut self, mut attributes: Attributes, has_flag: bool) -> Attributes {
        if self.parallelism.is_manual() {
            self.channels = self.channels.saturating_add(1);
            // Type 1 is device to device (StableHLO specification, `channel_type`).
            let handle = format!("#stablehlo.channel_handle<handle = {}, type = 1>", self.channels);
            attributes.push(("channel_handle", handle));
            if has_flag {
                attributes.push(("use_global_device_ids", String::new()));
            }
        }
        attributes
    }
}

/// `from` with other sizes of some dimensions.
fn resized(from: &Shape, sizes: &[(usize, u64)]) -> Shape {
    let new = |(index, found): (usize, &u64)| {
        sizes.iter().find(|(dim, _)| *dim == index).map_or(*found, |(_, wanted)| *wanted)
    };
    from.with_dims(from.dims().iter().enumerate().map(new).collect::<Vec<_>>())
}

/// `from` with dimension `dim` divided by `count`.
fn divided(from: &Shape, dim: usize, count: u64) -> Result<Shape, Problem> {
    let found = from.dim(dim)?;
    in_range("the size of a divided dimension", found, 1, u64::MAX)?;
    match found.checked_rem(count) {
        Some(0) => Ok(resized(from, &[(dim, found / count)])),
        _ => Err(Problem::List {
            what: "the size and the parts",
            found: vec![found, count],
            wanted: "a multiple and its divisor",
        }),
    }
}
