//! Arrays to the device and back, lent memory, donation.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gemma4_pjrt::mapped::{Access, MappedFile};
use gemma4_pjrt::{Argument, Element, ElementType, Error, HostBytes};
use half::{bf16, f16};

use crate::support::{ADD_IN_PLACE, DOUBLE, client, compile};

#[test]
fn every_type_comes_back_as_it_went() {
    let Some(client) = client(1) else { return };
    fn round_trip<T: Element + PartialEq + std::fmt::Debug>(client: &gemma4_pjrt::Client, values: &[T; 6]) {
        let buffer = client.buffer_of(values, &[2, 3], 0).unwrap();
        assert_eq!(buffer.element_type().unwrap(), T::TYPE);
        assert_eq!(buffer.dims().unwrap(), [2, 3]);
        assert_eq!(buffer.device().unwrap(), 0);
        assert_eq!(buffer.on_device_size().unwrap(), size_of::<T>() * 6);
        assert_eq!(buffer.to_vec::<T>().unwrap(), values);
    }
    round_trip(&client, &[0_i8, 1, -1, i8::MIN, i8::MAX, 7]);
    round_trip(&client, &[0_u8, 1, 2, 3, u8::MAX, 7]);
    round_trip(&client, &[0_i32, 1, -1, i32::MIN, i32::MAX, 7]);
    round_trip(&client, &[0_u32, 1, 2, 3, u32::MAX, 7]);
    round_trip(&client, &[0_i64, 1, -1, i64::MIN, i64::MAX, 7]);
    round_trip(&client, &[0.0_f32, 1.5, -1.5, f32::MIN, f32::MAX, f32::INFINITY]);
    round_trip(&client, &[0.0, 1.5, -1.5, 2.0, 3.0, 4.0].map(bf16::from_f32));
    round_trip(&client, &[0.0, 1.5, -1.5, 2.0, 3.0, 4.0].map(f16::from_f32));
    for element in [ElementType::F8E4M3FN, ElementType::F8E5M2] {
        let bytes: Vec<u8> = (0..=255).collect();
        let buffer = client.buffer(&bytes, element, &[16, 16], 0).unwrap();
        assert_eq!(buffer.element_type().unwrap(), element);
        assert_eq!(buffer.to_host().unwrap(), bytes);
    }
    let truth = client.buffer(&[1, 0, 1], ElementType::Pred, &[3], 0).unwrap();
    assert_eq!(truth.to_host().unwrap(), [1, 0, 1]);
}

#[test]
fn scalars_and_empty_arrays_are_arrays() {
    let Some(client) = client(1) else { return };
    let scalar = client.buffer_of(&[2.5_f32], &[], 0).unwrap();
    assert_eq!((scalar.dims().unwrap(), scalar.to_vec::<f32>().unwrap()), (&[][..], vec![2.5]));
    let empty = client.buffer_of::<f32>(&[], &[3, 0], 0).unwrap();
    assert_eq!((empty.dims().unwrap(), empty.to_vec::<f32>().unwrap()), (&[3, 0][..], vec![]));
}

#[test]
fn fp8_and_bf16_are_converted_as_their_definitions_say() {
    let Some(client) = client(1) else { return };
    let program = r"
func.func public @main(%x: tensor<4xf8E4M3FN>, %y: tensor<4xf8E5M2>, %z: tensor<4xbf16>)
    -> (tensor<4xf32>, tensor<4xf32>, tensor<4xf32>) {
  %a = stablehlo.convert %x : (tensor<4xf8E4M3FN>) -> tensor<4xf32>
  %b = stablehlo.convert %y : (tensor<4xf8E5M2>) -> tensor<4xf32>
  %c = stablehlo.convert %z : (tensor<4xbf16>) -> tensor<4xf32>
  return %a, %b, %c : tensor<4xf32>, tensor<4xf32>, tensor<4xf32>
}";
    // Worked out by hand from sign, exponent and mantissa: the largest, one, the smallest subnormal, minus two.
    let e4m3 = client.buffer(&[0x7e, 0x38, 0x01, 0xc0], ElementType::F8E4M3FN, &[4], 0).unwrap();
    let e5m2 = client.buffer(&[0x7b, 0x3c, 0x01, 0xc0], ElementType::F8E5M2, &[4], 0).unwrap();
    let bf16s = [0x7f7f_u16, 0x3f80, 0x0080, 0xc000].map(bf16::from_bits);
    let bf16s = client.buffer_of(&bf16s, &[4], 0).unwrap();
    let arguments = vec![vec![Argument::Keep(&e4m3), Argument::Keep(&e5m2), Argument::Keep(&bf16s)]];
    let outputs = compile(&client, program).execute(arguments).unwrap().remove(0);
    assert_eq!(outputs[0].to_vec::<f32>().unwrap(), [448.0, 1.0, 0.001_953_125, -2.0]);
    assert_eq!(outputs[1].to_vec::<f32>().unwrap(), [57344.0, 1.0, 1.525_878_9e-5, -2.0]);
    assert_eq!(outputs[2].to_vec::<f32>().unwrap(), [3.389_531_4e38, 1.0, 1.175_494_4e-38, -2.0]);
}

#[test]
fn wrong_sizes_types_and_devices_are_named() {
    let Some(client) = client(2) else { return };
    let size = client.buffer_of(&[1.0_f32; 3], &[4], 0).unwrap_err();
    assert_eq!(size.to_string(), "an array of [4] F32 holds 16 bytes, not 12");
    assert!(matches!(client.buffer_of(&[1.0_f32], &[-1], 0), Err(Error::Shape(_))));
    let device = client.buffer_of(&[1.0_f32], &[], 2).unwrap_err();
    assert_eq!(device.to_string(), "there is no device 2: the client has 2, counted from 0");
    let buffer = client.buffer_of(&[1.0_f32], &[], 1).unwrap();
    assert_eq!(buffer.device().unwrap(), 1);
    assert_eq!(buffer.to_vec::<i32>().unwrap_err().to_string(), "the array holds F32, not S32");
    assert!(matches!(buffer.read_into(&mut [0; 3]), Err(Error::Size { .. })));
    let copy = buffer.copy_to_device(0).unwrap();
    assert_eq!((copy.device().unwrap(), copy.to_vec::<f32>().unwrap()), (0, vec![1.0]));
}

/// Numbers at an aligned place, and a count of how often such a value was dropped.
struct Lent(Vec<Line>, Arc<AtomicUsize>);

#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

fn lent(lines: usize) -> (HostBytes, Arc<AtomicUsize>) {
    let drops = Arc::new(AtomicUsize::new(0));
    (HostBytes::new(Arc::new(Lent(vec![Line([1.5; 16]); lines], Arc::clone(&drops)))), drops)
}

#[test]
fn aligned_memory_is_lent_without_a_copy_and_kept_as_long() {
    let Some(client) = client(1) else { return };
    let (bytes, drops) = lent(64);
    let address = bytes.as_ptr().addr();
    let buffer = client.borrow(bytes, ElementType::F32, &[1024], 0).unwrap();
    assert_eq!(buffer.address().unwrap(), address);
    assert_eq!(drops.load(Ordering::SeqCst), 0);
    assert_eq!(buffer.to_vec::<f32>().unwrap(), [1.5; 1024]);
    assert_eq!(drops.load(Ordering::SeqCst), 0);
    drop(buffer);
    wait_for(&drops);
}

#[test]
fn memory_that_is_not_aligned_is_copied_and_let_go() {
    let Some(client) = client(1) else { return };
    let (bytes, drops) = lent(64);
    let odd = bytes.slice(4..4092).unwrap();
    drop(bytes);
    assert!(!odd.is_aligned());
    let address = odd.as_ptr().addr();
    let buffer = client.borrow(odd, ElementType::F32, &[1022], 0).unwrap();
    assert_ne!(buffer.address().unwrap(), address);
    wait_for(&drops);
    assert_eq!(buffer.to_vec::<f32>().unwrap(), [1.5; 1022]);
}

#[test]
fn the_alignment_is_the_least_that_xla_takes() {
    let Some(client) = client(1) else { return };
    let (bytes, _) = lent(64);
    for (offset, in_place) in [(HostBytes::ALIGNMENT, true), (HostBytes::ALIGNMENT / 2, false), (4, false)] {
        let part = bytes.slice(offset..offset + 1024).unwrap();
        assert_eq!(part.is_aligned(), in_place);
        let address = part.as_ptr().addr();
        let buffer = client.borrow(part, ElementType::F32, &[256], 0).unwrap();
        assert_eq!(buffer.address().unwrap() == address, in_place, "at {offset} bytes");
    }
}

/// XLA releases memory from a thread of its own.
fn wait_for(drops: &AtomicUsize) {
    for _ in 0..500 {
        if drops.load(Ordering::SeqCst) == 1 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the lent memory was released {} times", drops.load(Ordering::SeqCst));
}

#[test]
fn a_part_outside_of_the_memory_is_refused() {
    let (bytes, _) = lent(1);
    assert!(bytes.slice(0..65).is_err());
    #[expect(clippy::reversed_empty_ranges, reason = "this is what is refused")]
    let reversed = bytes.slice(9..8);
    assert!(reversed.is_err());
    assert_eq!(bytes.slice(60..64).unwrap().len(), 4);
}

#[test]
fn lent_memory_survives_donation_unchanged() {
    let Some(client) = client(1) else { return };
    let (bytes, drops) = lent(64);
    let ours = bytes.clone();
    let add = compile(&client, ADD_IN_PLACE);
    let x = client.borrow(bytes, ElementType::F32, &[1024], 0).unwrap();
    let y = client.buffer_of(&[1.0_f32; 1024], &[1024], 0).unwrap();
    let outputs = add.execute(vec![vec![Argument::Donate(x), Argument::Keep(&y)]]).unwrap();
    assert_eq!(outputs[0][0].to_vec::<f32>().unwrap(), [2.5; 1024]);
    assert_eq!(bytemuck::cast_slice::<u8, f32>(&ours), [1.5; 1024]);
    drop((outputs, ours));
    wait_for(&drops);
}

#[test]
fn a_mapped_file_is_lent_like_memory() {
    let Some(client) = client(1) else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    let numbers: Vec<f32> = (0_u16..4).map(f32::from).collect();
    std::fs::write(file.path(), bytemuck::cast_slice(&numbers)).unwrap();
    let map = MappedFile::open(file.path()).unwrap();
    map.advise(Access::WillNeed, 0, 16).unwrap();
    assert!(map.advise(Access::Sequential, 8, 16).is_err());
    let bytes = HostBytes::new(map.clone());
    let address = bytes.as_ptr().addr();
    let buffer = client.borrow(bytes, ElementType::F32, &[4], 0).unwrap();
    assert_eq!(buffer.address().unwrap(), address);
    // Memory that was given back is read again.
    map.release().unwrap();
    let outputs = compile(&client, DOUBLE).execute(vec![vec![Argument::Keep(&buffer)]]).unwrap();
    drop(buffer);
    assert_eq!(outputs[0][0].to_vec::<f32>().unwrap(), [0.0, 2.0, 4.0, 6.0]);
    let missing = MappedFile::open(std::path::Path::new("/nowhere/weights")).unwrap_err();
    assert!(missing.to_string().starts_with("cannot map /nowhere/weights: "), "{missing}");
}

#[test]
fn a_donated_array_gives_its_place_to_the_output() {
    let Some(client) = client(1) else { return };
    let add = compile(&client, ADD_IN_PLACE);
    let x = client.buffer_of(&[1.0_f32; 1024], &[1024], 0).unwrap();
    let y = client.buffer_of(&[2.0_f32; 1024], &[1024], 0).unwrap();
    let place = x.address().unwrap();
    let outputs = add.execute(vec![vec![Argument::Donate(x), Argument::Keep(&y)]]).unwrap();
    assert_eq!(outputs[0][0].address().unwrap(), place);
    assert_eq!(outputs[0][0].to_vec::<f32>().unwrap(), [3.0; 1024]);
    assert_eq!(y.to_vec::<f32>().unwrap(), [2.0; 1024]);
}

#[test]
fn a_lent_array_is_never_taken() {
    let Some(client) = client(1) else { return };
    let add = compile(&client, ADD_IN_PLACE);
    let x = client.buffer_of(&[1.0_f32; 1024], &[1024], 0).unwrap();
    for _ in 0..2 {
        let outputs = add.execute(vec![vec![Argument::Keep(&x), Argument::Keep(&x)]]).unwrap();
        assert_ne!(outputs[0][0].address().unwrap(), x.address().unwrap());
        assert_eq!(outputs[0][0].to_vec::<f32>().unwrap(), [2.0; 1024]);
        assert_eq!(x.to_vec::<f32>().unwrap(), [1.0; 1024]);
    }
}

#[test]
fn outputs_can_be_donated_before_they_are_there() {
    let Some(client) = client(1) else { return };
    let add = compile(&client, ADD_IN_PLACE);
    let y = client.buffer_of(&[1.0_f32; 1024], &[1024], 0).unwrap();
    let mut x = client.buffer_of(&[0.0_f32; 1024], &[1024], 0).unwrap();
    let mut done = Vec::new();
    for _ in 0..50 {
        let mut execution = add.launch(vec![vec![Argument::Donate(x), Argument::Keep(&y)]]).unwrap();
        x = execution.outputs.remove(0).remove(0);
        done.append(&mut execution.done);
    }
    assert_eq!(x.to_vec::<f32>().unwrap(), [50.0; 1024]);
    for event in done {
        event.wait().unwrap();
        assert!(event.is_ready().unwrap());
    }
}
