//! Running programs.
//!
//! Invariant: an argument is either lent, and holds its array afterwards, or given away by value; so a donated buffer
//! cannot be named again.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::executable::LoadedExecutable;
use crate::ffi::arguments::LoadedExecutableExecute;
use crate::ffi::{self, Arguments as _};

/// An argument of an execution.
#[derive(Debug)]
pub enum Argument<'a> {
    /// The array is only read. If the program would put an output in its place, XLA copies it first.
    Keep(&'a Buffer),
    /// The program may put an output in the array's place, as parameters with `tf.aliasing_output` or
    /// `jax.buffer_donor` ask for.
    Donate(Buffer),
}

impl Argument<'_> {
    fn buffer(&self) -> &Buffer {
        match self {
            Argument::Keep(buffer) => buffer,
            Argument::Donate(buffer) => buffer,
        }
    }
}

/// A program that was started on all its devices.
#[derive(Debug)]
pub struct Execution {
    /// `[device][output]`; may be used as arguments at once, before the program is done.
    pub outputs: Vec<Vec<Buffer>>,
    /// One per device: the program is done there, or failed.
    pub done: Vec<Event>,
}

impl Execution {
    /// Blocks until all devices are done.
    ///
    /// # Errors
    /// The first device's failure.
    pub fn wait(self) -> Result<Vec<Vec<Buffer>>> {
        // All are awaited before the first error is told, so that nothing runs on after this returns.
        let results: Vec<_> = self.done.iter().map(|event| event.wait_for("execute the program")).collect();
        results.into_iter().collect::<Result<()>>()?;
        Ok(self.outputs)
    }
}

impl LoadedExecutable {
    /// Runs the program and waits for it. See [`LoadedExecutable::launch`].
    ///
    /// # Errors
    /// As for [`LoadedExecutable::launch`] and [`Execution::wait`].
    pub fn execute(&self, arguments: Vec<Vec<Argument<'_>>>) -> Result<Vec<Vec<Buffer>>> {
        self.launch(arguments)?.wait()
    }

    /// Starts the program on all its devices. `arguments` are `[device][argument]`, devices in the order of
    /// [`LoadedExecutable::devices`]. Donated buffers are gone afterwards, even when this fails.
    ///
    /// # Errors
    /// [`Error::Arguments`] when the lists differ in length or in what is donated, or a buffer is of another client;
    /// [`Error::Donated`] when a lent buffer was taken by an earlier execution; [`Error::Xla`] when number, devices or
    /// sizes are not what the program takes.
    pub fn launch(&self, arguments: Vec<Vec<Argument<'_>>>) -> Result<Execution> {
        let kept = self.check(&arguments)?;
        let client = self.client();
        let inputs: Vec<Vec<*mut ffi::Buffer>> =
            arguments.iter().map(|list| list.iter().map(|argument| argument.buffer().raw()).collect()).collect();
        let input_lists: Vec<*const *mut ffi::Buffer> = inputs.iter().map(|list| list.as_ptr()).collect();
        let num_args = inputs.first().map_or(0, Vec::len);
        let mut outputs = vec![vec![ptr::null_mut::<ffi::Buffer>(); self.num_outputs()]; inputs.len()];
        let output_lists: Vec<*mut *mut ffi::Buffer> = outputs.iter_mut().map(|list| list.as_mut_ptr()).collect();
        let mut events = vec![ptr::null_mut::<ffi::Event>(); inputs.len()];

        let mut options = execute_options(&kept);
        let mut call = LoadedExecutableExecute::new();
        call.executable = self.raw();
        call.options = &raw mut options;
        call.argument_lists = input_lists.as_ptr();
        call.num_devices = inputs.len();
        call.num_args = num_args;
        call.output_lists = output_lists.as_ptr();
        call.device_complete_events = events.as_mut_ptr();
        // SAFETY: executable and buffers are live and of one client; all lists have the lengths that are told, outputs
        // as many as the program has, and outlive the call. `check` compared the number of devices.
        unsafe { client.api().call("execute the program", &mut call) }?;

        let mut done = Vec::with_capacity(events.len());
        for event in events.into_iter().filter_map(NonNull::new) {
            // SAFETY: made for the caller, who has to destroy it.
            done.push(unsafe { Event::new(event, client) });
        }
        let action = "execute the program";
        let missing = || Error::Answer { action, reason: "it leaves out an output or an event".to_owned() };
        let complete = done.len() == inputs.len();
        let mut taken = Vec::with_capacity(outputs.len());
        for list in outputs {
            let count = list.len();
            // SAFETY: made for the caller, who has to destroy it.
            let own = |raw| unsafe { Buffer::new(raw, client) };
            let list: Vec<_> = list.into_iter().filter_map(NonNull::new).map(own).collect();
            taken.push(if list.len() == count { Ok(list) } else { Err(missing()) });
        }
        let outputs = taken.into_iter().collect::<Result<Vec<_>>>()?;
        if !complete {
            return Err(missing());
        }
        // Donated buffers are dropped here: XLA has taken their memory, and what is left are empty objects.
        drop(arguments);
        Ok(Execution { outputs, done })
    }

    /// Positions of the arguments that are lent, after the lists have been compared with each other.
    fn check(&self, arguments: &[Vec<Argument<'_>>]) -> Result<Vec<i64>> {
        if arguments.len() != self.devices().len() {
            let (wanted, found) = (self.devices().len(), arguments.len());
            return Err(Error::Arguments(format!(
                "the program runs on {wanted} devices, and {found} lists were given"
            )));
        }
        let first = arguments.first().map_or(&[][..], Vec::as_slice);
        for (device, list) in arguments.iter().enumerate() {
            if list.len() != first.len() {
                let (wanted, found) = (first.len(), list.len());
                let problem = format!("device 0 is given {wanted} arguments, and device {device} {found}");
                return Err(Error::Arguments(problem));
            }
            for (index, argument) in list.iter().enumerate() {
                let buffer = argument.buffer();
                if !Arc::ptr_eq(buffer.client(), self.client()) {
                    let problem = format!("argument {index} of device {device} belongs to another client");
                    return Err(Error::Arguments(problem));
                }
                if buffer.is_deleted()? {
                    return Err(Error::Donated);
                }
                // What XLA refuses on one device only leaves the others waiting in a collective for good. So what can
                // differ between devices is compared here, and XLA's own checks then fail on all of them or none.
                let (form, model) = (buffer.form()?, first[index].buffer().form()?);
                if form.device != self.devices()[device] {
                    let (wanted, found) = (self.devices()[device], form.device);
                    let problem = format!("argument {index} for device {wanted} lies on device {found}");
                    return Err(Error::Arguments(problem));
                }
                if (form.element, &form.dims) != (model.element, &model.dims) {
                    let problem = format!("argument {index} differs in type or shape between devices 0 and {device}");
                    return Err(Error::Arguments(problem));
                }
                if matches!(argument, Argument::Keep(_)) != matches!(first[index], Argument::Keep(_)) {
                    let problem = format!("argument {index} is donated on one device and lent on another");
                    return Err(Error::Arguments(problem));
                }
            }
        }
        let kept = first.iter().enumerate().filter(|(_, argument)| matches!(argument, Argument::Keep(_)));
        kept.map(|(index, _)| {
            i64::try_from(index).map_err(|error| Error::OutOfRange { what: "an argument", reason: error.to_string() })
        })
        .collect()
    }
}

/// Options that lend the arguments at these positions; borrows the list.
fn execute_options(kept: &[i64]) -> ffi::ExecuteOptions {
    ffi::ExecuteOptions {
        struct_size: size_of::<ffi::ExecuteOptions>(),
        extension_start: ptr::null_mut(),
        send_callbacks: ptr::null_mut(),
        recv_callbacks: ptr::null_mut(),
        num_send_ops: 0,
        num_recv_ops: 0,
        launch_id: 0,
        non_donatable_input_indices: if kept.is_empty() { ptr::null() } else { kept.as_ptr() },
        num_non_donatable_input_indices: kept.len(),
        context: ptr::null_mut(),
        call_location: ptr::null(),
        num_tasks: 0,
        task_ids: ptr::null_mut(),
        incarnation_ids: ptr::null_mut(),
    }
}
