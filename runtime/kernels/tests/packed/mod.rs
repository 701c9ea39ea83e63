//! Integers of four bits in words, as the documentation of the format says.

/// Rows of `width` integers from -8 to 7 in words of 16 bits.
pub(crate) fn pack(integers: &[i8], width: usize) -> Vec<u16> {
    let mut words = Vec::new();
    for row in integers.chunks(width) {
        for block in row.chunks(128) {
            for word in 0..32 {
                let nibble = |group: usize| {
                    let integer = block.get(32 * group + word).copied().unwrap_or(0);
                    u16::from(integer.cast_unsigned() & 15) << (4 * group)
                };
                words.push((0..4).map(nibble).sum());
            }
        }
    }
    words
}
