//! Devices as data.
//!
//! Invariant: what is said of a device was read when the client or topology was made and does not change; only its
//! memory use is asked anew.

use std::collections::BTreeMap;

use crate::api::{Api, query, text};
use crate::error::Result;
use crate::ffi;
use crate::ffi::arguments::DeviceMemoryStats;
use crate::value::{self, Value};

/// A device, there or only known by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Number among all devices of all hosts; device assignments speak of it.
    pub id: i32,
    /// The vendor's name, such as `TPU v6 lite` or `cpu`.
    pub kind: String,
    /// The process that the device belongs to, counted from 0.
    pub process_index: i32,
    /// Number on this host, or `None` for a device of a topology that is not there.
    pub local_hardware_id: Option<i32>,
    /// What else the plugin says, such as `coords` of a TPU.
    pub attributes: BTreeMap<String, Value>,
}

/// Memory of a device in bytes, as its allocator counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// In use now.
    pub in_use: i64,
    /// The most that was ever in use, when counted.
    pub peak: Option<i64>,
    /// What may be allocated at most, when known.
    pub limit: Option<i64>,
    /// The largest block that is free, when known.
    pub largest_free_block: Option<i64>,
}

/// Reads a description.
///
/// # Safety
/// `description` is live and belongs to the plugin of `api`.
pub(crate) unsafe fn read_description(
    api: &Api,
    description: *mut ffi::DeviceDescription,
    local_hardware_id: Option<i32>,
) -> Result<Device> {
    let id = query!(api, "describe a device", DescriptionId { device_description: description } => id)?;
    let process_index =
        query!(api, "describe a device", DescriptionProcessIndex { device_description: description } => process_index)?;
    let (kind, kind_size) = query!(
        api, "describe a device", DescriptionKind { device_description: description } => device_kind, device_kind_size
    )?;
    let attributes = query!(
        api, "describe a device", DescriptionAttributes { device_description: description } => attributes, num_attributes
    );
    // SAFETY: the text lives as long as the description.
    let kind = unsafe { text(kind, kind_size) };
    let attributes = match attributes {
        // SAFETY: the attributes live as long as the description.
        Ok((start, count)) => unsafe { value::copy(start, count) },
        Err(error) if error.code() == Some(crate::StatusCode::Unimplemented) => BTreeMap::new(),
        Err(error) => return Err(error),
    };
    Ok(Device { id, kind, process_index, local_hardware_id, attributes })
}

/// Reads a device that is there.
///
/// # Safety
/// `device` is live and belongs to the plugin of `api`.
pub(crate) unsafe fn read_device(api: &Api, device: *mut ffi::Device) -> Result<Device> {
    let description = query!(api, "describe a device", DeviceGetDescription { device: device } => device_description)?;
    let hardware = query!(api, "describe a device", DeviceLocalHardwareId { device: device } => local_hardware_id)?;
    // SAFETY: the description lives as long as its device.
    unsafe { read_description(api, description, Some(hardware)) }
}

/// Asks a device for its memory.
///
/// # Safety
/// `device` is live and belongs to the plugin of `api`.
pub(crate) unsafe fn memory_use(api: &Api, device: *mut ffi::Device) -> Result<MemoryUse> {
    let mut arguments = <DeviceMemoryStats as ffi::Arguments>::new();
    arguments.device = device;
    // SAFETY: the device is live.
    unsafe { api.call("count a device's memory", &mut arguments) }?;
    Ok(MemoryUse {
        in_use: arguments.bytes_in_use,
        peak: arguments.peak_bytes_in_use_is_set.then_some(arguments.peak_bytes_in_use),
        limit: arguments.bytes_limit_is_set.then_some(arguments.bytes_limit),
        largest_free_block: arguments.largest_free_block_bytes_is_set.then_some(arguments.largest_free_block_bytes),
    })
}
