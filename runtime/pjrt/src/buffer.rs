//! Arrays on devices.
//!
//! Invariant: a buffer keeps its client alive, and memory of the host that it borrows outlives it.

use std::ffi::c_void;
use std::mem::size_of;
use std::ptr::{self, NonNull};
use std::sync::{Arc, OnceLock};

use crate::api::{Api, query, slice};
use crate::client::ClientHandle;
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::ffi::arguments::{
    BufferCopyToDevice, BufferDestroy, BufferToHostBuffer, ClientBufferFromHostBuffer, EventOnReady,
};
use crate::ffi::{self, Arguments as _};
use crate::host::HostBytes;
use crate::topology::non_null;

/// An array on one device. Never changes; an execution may take it, see [`crate::Argument::Donate`].
pub struct Buffer {
    raw: NonNull<ffi::Buffer>,
    client: Arc<ClientHandle>,
    /// Asked once, since every launch compares it.
    form: OnceLock<Form>,
}

/// What never changes about a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) element: ElementType,
    pub(crate) dims: Vec<i64>,
    pub(crate) device: usize,
}

// SAFETY: PJRT asks plugins to accept calls on a buffer from any thread.
unsafe impl Send for Buffer {}
// SAFETY: as above; reading changes nothing.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Takes over a buffer.
    ///
    /// # Safety
    /// `raw` is live, belongs to this client, and nobody else destroys it.
    pub(crate) unsafe fn new(raw: NonNull<ffi::Buffer>, client: &Arc<ClientHandle>) -> Self {
        Buffer { raw, client: Arc::clone(client), form: OnceLock::new() }
    }

    pub(crate) fn raw(&self) -> *mut ffi::Buffer {
        self.raw.as_ptr()
    }

    pub(crate) fn client(&self) -> &Arc<ClientHandle> {
        &self.client
    }

    fn api(&self) -> &'static Api {
        self.client.api()
    }

    pub(crate) fn copy_from_host(
        client: &Arc<ClientHandle>,
        bytes: &[u8],
        element: ElementType,
        dims: &[i64],
        device: usize,
    ) -> Result<Self> {
        // SAFETY: with these semantics XLA has read the bytes when the call returns.
        let (buffer, _done) = unsafe { from_host(client, bytes, element, dims, device, ffi::HOST_ONLY_DURING_CALL) }?;
        Ok(buffer)
    }

    pub(crate) fn borrow_from_host(
        client: &Arc<ClientHandle>,
        bytes: HostBytes,
        element: ElementType,
        dims: &[i64],
        device: usize,
    ) -> Result<Self> {
        // SAFETY: `bytes` is kept below until XLA says that it is done with it, and never changes.
        let (buffer, done) = unsafe { from_host(client, &bytes, element, dims, device, ffi::HOST_ZERO_COPY) }?;
        let loan = Box::new(Loan { bytes, api: client.api() });
        let mut arguments = EventOnReady::new();
        arguments.event = done.raw();
        arguments.callback = Some(end_loan);
        let loan = Box::into_raw(loan);
        arguments.user_arg = loan.cast();
        // SAFETY: the event is live; the callback gets the loan back, once.
        if let Err(error) = unsafe { client.api().call("keep host memory", &mut arguments) } {
            // No callback will come. The event fires when the buffer is gone, so that is awaited here; should even
            // that fail, the memory stays lent for good, which is safe.
            drop(buffer);
            done.wait()?;
            // SAFETY: made by `into_raw` above, and no callback was registered.
            drop(unsafe { Box::from_raw(loan) });
            return Err(error);
        }
        Ok(buffer)
    }

    /// Type, shape and device.
    pub(crate) fn form(&self) -> Result<&Form> {
        if let Some(form) = self.form.get() {
            return Ok(form);
        }
        let element = query!(self.api(), "describe an array", BufferElementType { buffer: self.raw() } => type_)?;
        let (start, count) =
            query!(self.api(), "describe an array", BufferDimensions { buffer: self.raw() } => dims, num_dims)?;
        let device = query!(self.api(), "describe an array", BufferDevice { buffer: self.raw() } => device)?;
        let form = Form {
            element: ElementType::from_raw(element)?,
            // SAFETY: the dimensions live as long as the buffer.
            dims: unsafe { slice(start, count) }.to_vec(),
            device: self.client.position(device, "describe an array")?,
        };
        Ok(self.form.get_or_init(|| form))
    }

    /// Type of the elements.
    ///
    /// # Errors
    /// [`Error::ElementType`] for a type that this crate does not carry, and what the plugin says.
    pub fn element_type(&self) -> Result<ElementType> {
        Ok(self.form()?.element)
    }

    /// Dimensions, outermost first.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn dims(&self) -> Result<&[i64]> {
        Ok(&self.form()?.dims)
    }

    /// Position of its device in [`crate::Client::devices`].
    ///
    /// # Errors
    /// What the plugin says.
    pub fn device(&self) -> Result<usize> {
        Ok(self.form()?.device)
    }

    /// Bytes that it takes on the device, padding included.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn on_device_size(&self) -> Result<usize> {
        query!(self.api(), "measure an array", BufferOnDeviceSizeInBytes { buffer: self.raw() } => on_device_size_in_bytes)
    }

    /// Where it lies, in whatever way the device counts addresses: equal addresses mean shared memory. On CPUs it is
    /// an address of this process.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn address(&self) -> Result<usize> {
        query!(self.api(), "locate an array", BufferUnsafePointer { buffer: self.raw() } => buffer_pointer)
    }

    /// Whether an execution has taken it.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn is_deleted(&self) -> Result<bool> {
        query!(self.api(), "look at an array", BufferIsDeleted { buffer: self.raw() } => is_deleted)
    }

    /// Fires when the array has been computed or copied, or that failed.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn ready(&self) -> Result<Event> {
        let raw = query!(self.api(), "look at an array", BufferReadyEvent { buffer: self.raw() } => event)?;
        // SAFETY: made for the caller, who has to destroy it.
        Ok(unsafe { Event::new(non_null(raw, "look at an array")?, &self.client) })
    }

    /// A copy on another device of the same client.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`]; what XLA says when it is there already.
    pub fn copy_to_device(&self, device: usize) -> Result<Buffer> {
        let mut arguments = BufferCopyToDevice::new();
        arguments.buffer = self.raw();
        arguments.dst_device = self.client.device(device)?;
        // SAFETY: buffer and device are live and of one client.
        unsafe { self.api().call("copy an array to a device", &mut arguments) }?;
        let raw = non_null(arguments.dst_buffer, "copy an array to a device")?;
        // SAFETY: made for the caller, who has to destroy it.
        Ok(unsafe { Buffer::new(raw, &self.client) })
    }

    /// Waits for the array and copies it to the host: its elements in row-major order.
    ///
    /// # Errors
    /// [`Error::Donated`]; what went wrong while it was computed.
    pub fn to_host(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.element_type()?.bytes(self.dims()?)?];
        self.read_into(&mut bytes)?;
        Ok(bytes)
    }

    /// [`Buffer::to_host`] as numbers.
    ///
    /// # Errors
    /// [`Error::WrongElement`], and as for [`Buffer::to_host`].
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let found = self.element_type()?;
        if found != T::TYPE {
            return Err(Error::WrongElement { wanted: T::TYPE, found });
        }
        let count = found.bytes(self.dims()?)? / found.size();
        let mut values = vec![T::zeroed(); count];
        self.read_into(bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// [`Buffer::to_host`] into memory that is there, exactly as large as the array.
    ///
    /// # Errors
    /// [`Error::Size`], and as for [`Buffer::to_host`].
    pub fn read_into(&self, bytes: &mut [u8]) -> Result<()> {
        let (element, dims) = (self.element_type()?, self.dims()?);
        let wanted = element.bytes(dims)?;
        if bytes.len() != wanted {
            return Err(Error::Size { element, dims: dims.to_vec(), wanted, found: bytes.len() });
        }
        if self.is_deleted()? {
            return Err(Error::Donated);
        }
        // Without a layout XLA would give the elements in the device's order, which need not be row-major.
        let mut minor_to_major = Vec::with_capacity(dims.len());
        for dim in (0..dims.len()).rev() {
            minor_to_major.push(i64::try_from(dim).map_err(|_| Error::Shape(dims.to_vec()))?);
        }
        let mut layout = row_major(&minor_to_major);
        let mut arguments = BufferToHostBuffer::new();
        arguments.src = self.raw();
        arguments.host_layout = &raw mut layout;
        arguments.dst = bytes.as_mut_ptr().cast();
        arguments.dst_size = bytes.len();
        // SAFETY: the buffer is live; `bytes` is as large as is told, and is borrowed until the event below has fired.
        unsafe { self.api().call("copy an array to the host", &mut arguments) }?;
        let event = non_null(arguments.event, "copy an array to the host")?;
        // SAFETY: made for the caller, who has to destroy it.
        unsafe { Event::new(event, &self.client) }.wait_for("copy an array to the host")
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut arguments = BufferDestroy::new();
        arguments.buffer = self.raw();
        // SAFETY: live until here, and not used afterwards; executions that still read it hold on to its memory.
        unsafe { self.api().free(&mut arguments) };
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (element, dims) = (self.element_type().ok(), self.dims().ok());
        formatter.debug_struct("Buffer").field("element", &element).field("dims", &dims).finish_non_exhaustive()
    }
}

/// Makes a buffer of host memory, and the event that fires when XLA needs the memory no more.
///
/// # Safety
/// `bytes` stays valid and unchanged as long as `semantics` asks for.
unsafe fn from_host(
    client: &Arc<ClientHandle>,
    bytes: &[u8],
    element: ElementType,
    dims: &[i64],
    device: usize,
    semantics: i32,
) -> Result<(Buffer, Event)> {
    let wanted = element.bytes(dims)?;
    if bytes.len() != wanted {
        return Err(Error::Size { element, dims: dims.to_vec(), wanted, found: bytes.len() });
    }
    let action = "copy an array to a device";
    let mut arguments = ClientBufferFromHostBuffer::new();
    arguments.client = client.raw();
    arguments.data = bytes.as_ptr().cast();
    arguments.type_ = element.to_raw();
    arguments.dims = dims.as_ptr();
    arguments.num_dims = dims.len();
    arguments.host_buffer_semantics = semantics;
    arguments.device = client.device(device)?;
    // SAFETY: client and device are live, the bytes are as many as type and shape take, and the caller keeps them.
    unsafe { client.api().call(action, &mut arguments) }?;
    let (buffer, event) = (NonNull::new(arguments.buffer), NonNull::new(arguments.done_with_host_buffer));
    // SAFETY: made for the caller, who has to destroy it.
    let event = event.map(|raw| unsafe { Event::new(raw, client) });
    // SAFETY: as above.
    let buffer = buffer.map(|raw| unsafe { Buffer::new(raw, client) });
    buffer.zip(event).ok_or_else(|| Error::Answer { action, reason: "it succeeded but gave nothing".to_owned() })
}

/// Host memory that XLA reads.
struct Loan {
    #[expect(dead_code, reason = "held for the memory that it keeps alive")]
    bytes: HostBytes,
    api: &'static Api,
}

/// XLA is done with a loan.
unsafe extern "C" fn end_loan(error: *mut ffi::Error, loan: *mut c_void) {
    // SAFETY: `loan` came from `Box::into_raw` in `borrow_from_host`, and PJRT calls back once.
    let loan = unsafe { Box::from_raw(loan.cast::<Loan>()) };
    // SAFETY: the callback owns the error. What it says is also said by whoever waits for the buffer.
    drop(unsafe { loan.api.check("release host memory", error) });
    // Dropping the owner is foreign code that may panic, and a panic must not unwind into C++.
    drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(loan))));
}

/// Row-major order for the host; borrows the list.
fn row_major(minor_to_major: &[i64]) -> ffi::MemoryLayout {
    ffi::MemoryLayout {
        struct_size: size_of::<ffi::MemoryLayout>(),
        extension_start: ptr::null_mut(),
        tiled: ffi::TiledLayout {
            struct_size: size_of::<ffi::TiledLayout>(),
            extension_start: ptr::null_mut(),
            minor_to_major: minor_to_major.as_ptr(),
            minor_to_major_size: minor_to_major.len(),
            tile_dims: ptr::null(),
            tile_dim_sizes: ptr::null(),
            num_tiles: 0,
        },
        kind: ffi::LAYOUT_TILED,
    }
}
