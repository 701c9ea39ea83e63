//! How to compile, as the protocol buffer that XLA reads.
//!
//! Invariant: field numbers are those of `xla/pjrt/proto/compile_options.proto` and `xla/xla_data.proto`; fields left
//! out here keep XLA's defaults.

use std::collections::BTreeMap;

use prost::Message as _;

use crate::error::{Error, Result};

/// How to compile a program.
#[derive(Debug, Clone, PartialEq)]
pub struct CompileOptions {
    /// Copies of the program that each work on their own batch.
    pub num_replicas: usize,
    /// Parts that the program runs in at once, one device each.
    pub num_partitions: usize,
    /// Compile one program for all partitions (SPMD). Needed when `num_partitions` is more than 1.
    pub use_spmd_partitioning: bool,
    /// Which device runs which part. Without it XLA takes the first devices in order; for a topology it has to be
    /// given when there is more than one part.
    pub device_assignment: Option<DeviceAssignment>,
    /// XLA flags for this program only, by name without dashes, such as `xla_cpu_enable_fast_math`.
    pub overrides: BTreeMap<String, Override>,
}

/// The value of an XLA flag.
#[derive(Debug, Clone, PartialEq)]
pub enum Override {
    /// A text or the name of a choice.
    String(String),
    /// Yes or no.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A number.
    Double(f64),
}

/// Ids of devices by replica and partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceAssignment {
    /// `[replica][partition]`: the [`crate::Device::id`] of the device that runs it.
    pub devices: Vec<Vec<i64>>,
}

impl Default for CompileOptions {
    /// For one device.
    fn default() -> Self {
        CompileOptions {
            num_replicas: 1,
            num_partitions: 1,
            use_spmd_partitioning: false,
            device_assignment: None,
            overrides: BTreeMap::new(),
        }
    }
}

impl CompileOptions {
    /// For programs written on local shapes with `mhlo.sharding = "{manual}"`, one part per device: SPMD over
    /// `devices`, which are ids in the order of the partitions.
    pub fn manual_spmd(devices: &[i64]) -> Self {
        CompileOptions {
            num_partitions: devices.len(),
            use_spmd_partitioning: true,
            device_assignment: Some(DeviceAssignment { devices: vec![devices.to_vec()] }),
            ..CompileOptions::default()
        }
    }

    /// The serialized `xla.CompileOptionsProto`. Equal options give equal bytes, so they belong into the key of a
    /// compile cache.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when the assignment is not of the shape `[num_replicas][num_partitions]`.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        let device_assignment = self.device_assignment.as_ref().map(|one| self.assignment(one)).transpose()?;
        let build = ExecutableBuildOptionsProto {
            // Not set: XLA's 0 would be a device.
            device_ordinal: -1,
            num_replicas: count(self.num_replicas)?,
            num_partitions: count(self.num_partitions)?,
            use_spmd_partitioning: self.use_spmd_partitioning,
            device_assignment,
        };
        let overrides = self.overrides.iter().map(|(name, value)| (name.clone(), OptionOverrideProto::from(value)));
        let options =
            CompileOptionsProto { executable_build_options: Some(build), env_option_overrides: overrides.collect() };
        Ok(options.encode_to_vec())
    }

    fn assignment(&self, assignment: &DeviceAssignment) -> Result<DeviceAssignmentProto> {
        let rows = &assignment.devices;
        if rows.len() != self.num_replicas || rows.iter().any(|row| row.len() != self.num_partitions) {
            let wanted = format!("it must name {} x {} devices", self.num_replicas, self.num_partitions);
            return Err(Error::OutOfRange { what: "device_assignment", reason: wanted });
        }
        let column = |partition: usize| ComputationDeviceProto {
            replica_device_ids: rows.iter().filter_map(|row| row.get(partition).copied()).collect(),
        };
        Ok(DeviceAssignmentProto {
            replica_count: small_count(self.num_replicas)?,
            computation_count: small_count(self.num_partitions)?,
            computation_devices: (0..self.num_partitions).map(column).collect(),
        })
    }
}

fn count(number: usize) -> Result<i64> {
    i64::try_from(number).map_err(|error| Error::OutOfRange { what: "a count of devices", reason: error.to_string() })
}

fn small_count(number: usize) -> Result<i32> {
    i32::try_from(number).map_err(|error| Error::OutOfRange { what: "a count of devices", reason: error.to_string() })
}

#[derive(Clone, PartialEq, prost::Message)]
struct CompileOptionsProto {
    #[prost(message, optional, tag = "3")]
    executable_build_options: Option<ExecutableBuildOptionsProto>,
    #[prost(btree_map = "string, message", tag = "7")]
    env_option_overrides: BTreeMap<String, OptionOverrideProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExecutableBuildOptionsProto {
    #[prost(int64, tag = "1")]
    device_ordinal: i64,
    #[prost(int64, tag = "4")]
    num_replicas: i64,
    #[prost(int64, tag = "5")]
    num_partitions: i64,
    #[prost(bool, tag = "6")]
    use_spmd_partitioning: bool,
    #[prost(message, optional, tag = "9")]
    device_assignment: Option<DeviceAssignmentProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeviceAssignmentProto {
    #[prost(int32, tag = "1")]
    replica_count: i32,
    #[prost(int32, tag = "2")]
    computation_count: i32,
    #[prost(message, repeated, tag = "3")]
    computation_devices: Vec<ComputationDeviceProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ComputationDeviceProto {
    #[prost(int64, repeated, tag = "1")]
    replica_device_ids: Vec<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OptionOverrideProto {
    #[prost(oneof = "OverrideValue", tags = "1, 2, 3, 4")]
    value: Option<OverrideValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum OverrideValue {
    #[prost(string, tag = "1")]
    String(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(int64, tag = "3")]
    Int(i64),
    #[prost(double, tag = "4")]
    Double(f64),
}

impl From<&Override> for OptionOverrideProto {
    fn from(value: &Override) -> Self {
        let value = match value {
            Override::String(text) => OverrideValue::String(text.clone()),
            Override::Bool(yes) => OverrideValue::Bool(*yes),
            Override::Int(number) => OverrideValue::Int(*number),
            Override::Double(number) => OverrideValue::Double(*number),
        };
        OptionOverrideProto { value: Some(value) }
    }
}
