//! Products of bfloat16 with AMX: tiles of 16 rows by 32 elements meet tiles of 32 elements by 16 columns, summed in f32.
//!
//! Weights are the left factor ([`Lines`]). Where they meet few rows of the input, tiles of them are loaded where they lie. Else they are
//! read line by line and in the order of memory, whatever they are, and lie in the caches as bfloat16 before they are multiplied. Rows of
//! the input become the right factor once for each product, with pairs of neighbours of sixteen rows side by side ([`Packed`]). So what
//! comes out is turned, and is turned back in registers when it leaves ([`Square`]).
//!
//! Registers of tiles are this module's alone: the compiler uses none, so they keep what they hold from one statement to the next,
//! and every function that needs them holds a [`Tiles`].

#![expect(clippy::needless_range_loop, reason = "iterators are left as calls in functions for certain instructions")]

mod lines;
mod packed;
mod products;
mod weigh;

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;

use half::bf16;

pub(crate) use self::lines::Lines;
pub(crate) use self::packed::Packed;
use self::packed::Right;
pub(crate) use self::products::{Square, products};
pub(crate) use self::weigh::{Scratch, weigh};

/// Rows of a tile, and pairs or sums in each of them.
const SIDE: usize = 16;
/// Elements of a row of a tile.
const PAIRS: usize = 2 * SIDE;
/// Rows of the matrix that are multiplied at a time: two tiles.
pub(crate) const BLOCK: usize = 2 * SIDE;
/// Tiles of a row that meet many rows of the input before the next ones do: rows of the matrix stay in the first cache, together with what
/// passes through it, and rows of the input in the second.
const DEPTH: usize = 8;
/// The same where there are few rows of the input: as many as make memory read ahead by itself.
const DEPTH_OF_FEW: usize = 32;
/// Tiles of the input that are few.
const FEW: usize = 4;

/// Whether the processor has AMX for bfloat16 and the system lets this process use it, which it is asked here.
pub(crate) fn request() -> bool {
    /// `AMX-BF16` and `AMX-TILE` of leaf 7.
    const BITS: u32 = 1 << 22 | 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BITS == BITS && is_allowed()
}

/// Asks Linux for the state of tiles, which a process has to before it uses them (Documentation/arch/x86/xstate.rst).
#[cfg(target_os = "linux")]
fn is_allowed() -> bool {
    /// The number of the call.
    const ARCH_PRCTL: usize = 158;
    /// `ARCH_REQ_XCOMP_PERM`.
    const REQUEST: usize = 0x1023;
    /// `XFEATURE_XTILE_DATA`.
    const TILE_DATA: usize = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call reads no memory; the kernel keeps all registers but these.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") REQUEST, in("rsi") TILE_DATA, out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_allowed() -> bool {
    false
}

/// How registers of tiles are laid out, as `ldtilecfg` reads it.
#[repr(C, align(64))]
struct Layout {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    bytes_of_row: [u16; 16],
    rows: [u8; 16],
}

/// The right to use this thread's tiles, all of 16 rows of 64 bytes. What they hold is lost with it.
struct Tiles(PhantomData<*const ()>);

impl Tiles {
    /// # Safety
    /// [`request`] has returned true, and there is no other on this thread.
    unsafe fn new() -> Self {
        let first = |value| std::array::from_fn(|tile| if tile < 8 { value } else { 0 });
        let layout =
            Layout { palette: 1, start: 0, reserved: [0; 14], bytes_of_row: first(64).map(u16::from), rows: first(16) };
        // SAFETY: the layout is one that all processors with tiles have.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const layout, options(nostack, preserves_flags, readonly)) };
        Tiles(PhantomData)
    }

    /// Fills a tile with 0.
    #[inline(always)]
    fn zero<const TILE: u8>(&self) {
        // SAFETY: tiles are ours.
        unsafe { asm!("tilezero tmm{tile}", tile = const TILE, options(nostack, preserves_flags, nomem)) };
    }

    /// Fills a tile with rows that are `stride` bytes apart.
    ///
    /// # Safety
    /// They can be read.
    #[inline(always)]
    unsafe fn load<const TILE: u8>(&self, from: *const u8, stride: usize) {
        // SAFETY: the caller vouches for it.
        unsafe {
            asm!("tileloadd tmm{tile}, [{from} + {stride}]", tile = const TILE, from = in(reg) from, stride = in(reg) stride,
                options(nostack, preserves_flags, readonly));
        }
    }

    /// Writes a tile's rows one after the other.
    #[inline(always)]
    fn store<const TILE: u8>(&self, to: &mut Sums) {
        // SAFETY: 1,024 bytes.
        unsafe {
            asm!("tilestored [{to} + {stride}], tmm{tile}", tile = const TILE, to = in(reg) to, stride = in(reg) 64_usize,
                options(nostack, preserves_flags));
        }
    }

    /// Adds a product of two tiles to a third.
    #[inline(always)]
    fn multiply<const SUMS: u8, const LEFT: u8, const RIGHT: u8>(&self) {
        // SAFETY: tiles are ours.
        unsafe {
            asm!("tdpbf16ps tmm{sums}, tmm{left}, tmm{right}", sums = const SUMS, left = const LEFT, right = const RIGHT,
                options(nostack, preserves_flags, nomem));
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: they were ours.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// Sums `[row of the matrix][row of the input]`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Sums([[f32; SIDE]; SIDE]);

impl Sums {
    const ZERO: Self = Sums([[0.0; SIDE]; SIDE]);
}

/// Rows of the matrix of which two tiles are read at a time.
#[derive(Clone, Copy)]
struct Left {
    start: *const bf16,
    /// Elements from the beginning of one row to that of the next.
    stride: usize,
}

impl Left {
    /// The same rows from a tile on.
    #[inline(always)]
    fn at(self, tile: usize) -> Self {
        Left { start: self.start.wrapping_add(tile * PAIRS), ..self }
    }

    #[inline(always)]
    fn row(self, row: usize) -> *const u8 {
        self.start.wrapping_add(row * self.stride).cast()
    }
}

/// What is done between products of tiles, which leave most of the processor idle.
trait Meanwhile {
    /// A part of it.
    ///
    /// # Safety
    /// The processor has AVX-512 with bfloat16.
    unsafe fn go_on(&mut self);
}

/// Nothing.
struct Idle;

impl Meanwhile for Idle {
    #[inline(always)]
    unsafe fn go_on(&mut self) {}
}

impl Tiles {
    /// 32 rows with 16 of the input.
    ///
    /// # Safety
    /// The rows are as long as the tiles.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn narrow(&self, left: Left, right: &[Right], meanwhile: &mut impl Meanwhile) {
        for (at, right) in right.iter().enumerate() {
            let left = left.at(at);
            // SAFETY: the caller vouches for it.
            unsafe {
                self.load::<6>(right.0.as_ptr().cast(), 64);
                self.load::<4>(left.row(0), 2 * left.stride);
                self.multiply::<0, 4, 6>();
                self.load::<5>(left.row(SIDE), 2 * left.stride);
                self.multiply::<1, 5, 6>();
                meanwhile.go_on();
            }
        }
    }

    /// 32 rows with 32 of the input.
    ///
    /// # Safety
    /// The rows are as long as the tiles.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn wide(&self, left: Left, right: [&[Right]; 2], meanwhile: &mut impl Meanwhile) {
        for (at, (first, second)) in right[0].iter().zip(right[1]).enumerate() {
            let left = left.at(at);
            // SAFETY: the caller vouches for it.
            unsafe {
                self.load::<4>(left.row(0), 2 * left.stride);
                self.load::<6>(first.0.as_ptr().cast(), 64);
                self.multiply::<0, 4, 6>();
                self.load::<5>(left.row(SIDE), 2 * left.stride);
                self.multiply::<1, 5, 6>();
                self.load::<7>(second.0.as_ptr().cast(), 64);
                self.multiply::<2, 4, 7>();
                self.multiply::<3, 5, 7>();
                meanwhile.go_on();
            }
        }
    }

    /// Takes sums up: those of the first sixteen rows of the input, of the first and the second sixteen of the matrix, and of the second
    /// sixteen if there are so many.
    #[inline(always)]
    fn begin(&self, sums: Option<&[[Sums; 2]]>, is_wide: bool) {
        let Some(sums) = sums else {
            self.zero::<0>();
            self.zero::<1>();
            self.zero::<2>();
            self.zero::<3>();
            return;
        };
        // SAFETY: 1,024 bytes each.
        unsafe {
            self.load::<0>(sums[0][0].0.as_ptr().cast(), 64);
            self.load::<1>(sums[0][1].0.as_ptr().cast(), 64);
            if is_wide {
                self.load::<2>(sums[1][0].0.as_ptr().cast(), 64);
                self.load::<3>(sums[1][1].0.as_ptr().cast(), 64);
            }
        }
    }

    /// Puts them down.
    #[inline(always)]
    fn end(&self, sums: &mut [[Sums; 2]], is_wide: bool) {
        self.store::<0>(&mut sums[0][0]);
        self.store::<1>(&mut sums[0][1]);
        if is_wide {
            self.store::<2>(&mut sums[1][0]);
            self.store::<3>(&mut sums[1][1]);
        }
    }
}

/// Multiplies tiles as they lie in the first cache, `rounds` times over. Returns how many operations that were.
///
/// # Safety
/// [`request`] has returned true, and the processor has AVX-512 with bfloat16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn multiply(rounds: usize) -> f64 {
    /// Tiles of a row: both factors take a third of the first cache.
    const DEEP: usize = 8;
    let right = [Right::ZERO; DEEP];
    // Every row is a line of memory longer, so that rows do not push each other out.
    let left = [[bf16::ONE; (DEEP + 1) * PAIRS]; BLOCK];
    let mut sums = [[Sums::ZERO; 2]; 2];
    // SAFETY: the caller vouches for it.
    let tiles = unsafe { Tiles::new() };
    let rounds = rounds.div_ceil(DEEP);
    tiles.begin(None, true);
    for _ in 0..rounds {
        let left = Left { start: left.as_ptr().cast(), stride: left[0].len() };
        // SAFETY: the rows are as long.
        unsafe { tiles.wide(left, [&right, &right], &mut Idle) };
    }
    tiles.end(&mut sums, true);
    std::hint::black_box(sums);
    (2 * rounds * DEEP * 2 * SIDE * 2 * SIDE * PAIRS) as f64
}
