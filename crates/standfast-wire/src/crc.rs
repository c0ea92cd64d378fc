//! CRC-32C of record batches: one pass to verify, algebra to rewrite.
//!
//! A CRC is linear over GF(2): for two messages of equal length,
//! `crc(a) ^ crc(b)` depends on `a ^ b` alone. When only the first bytes of a batch change, the new CRC is therefore
//! `old ^ shift(delta of the changed bytes, length of the unchanged rest)`, and the payload need not be read again.

/// The Castagnoli polynomial, reflected (bit 31 is the coefficient of x^0).
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// x^0 in the reflected representation.
const ONE: u32 = 1 << 31;

/// `x^(8 * 2^k) mod P` for k = 0..64: the operators that append 1, 2, 4, … zero bytes.
const ZERO_BYTES: [u32; 64] = zero_bytes_table();

/// CRC-32C (Castagnoli, as in Kafka's record batch v2) of `data`, with carry-less multiplication where the processor has it.
pub(crate) fn crc32c(data: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(data)
}

/// The CRC of a message of which `changed` bytes at its front were replaced by `by` and `rest` bytes follow unchanged.
///
/// `changed` and `by` must have the same length.
pub(crate) fn replace_front(old: u32, changed: &[u8], by: &[u8], rest: usize) -> u32 {
    debug_assert_eq!(changed.len(), by.len());
    old ^ append_zeros(crc32c(changed) ^ crc32c(by), rest)
}

/// What a CRC difference becomes when `bytes` bytes follow it in both messages: `difference * x^(8 * bytes) mod P`.
fn append_zeros(difference: u32, bytes: usize) -> u32 {
    let mut value = difference;
    let mut left = bytes as u64;
    while left != 0 {
        let bit = left.trailing_zeros() as usize;
        value = multiply(ZERO_BYTES[bit & 63], value);
        left &= left - 1;
    }
    value
}

/// `a * b mod P` over GF(2), both reflected.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        // Masks instead of branches: the bits are as good as random, so a branch would be mispredicted half of the time.
        product ^= b & 0u32.wrapping_sub((a >> (31 - bit)) & 1);
        b = (b >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(b & 1));
        bit += 1;
    }
    product
}

const fn zero_bytes_table() -> [u32; 64] {
    let mut table = [0; 64];
    let mut operator = ONE >> 8; // x^8
    let mut k = 0;
    while k < 64 {
        table[k] = operator;
        operator = multiply(operator, operator);
        k += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_check_value_of_the_catalogue() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn the_hardware_path_is_used_where_there_is_one() {
        let target = crc_fast::get_calculator_target(crc_fast::CrcAlgorithm::Crc32Iscsi);
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("pclmulqdq") {
            assert!(
                target.contains("pclmulqdq") || target.contains("vpclmul"),
                "crc-fast runs in software here: {target}"
            );
        }
        assert!(!target.is_empty());
    }

    proptest! {
        #[test]
        fn agrees_with_another_implementation(data in proptest::collection::vec(any::<u8>(), 0..5000)) {
            prop_assert_eq!(crc32c(&data), crc32c::crc32c(&data));
        }

        #[test]
        fn replacing_the_front_equals_computing_afresh(
            pair in (1usize..64).prop_flat_map(|n| (proptest::collection::vec(any::<u8>(), n), proptest::collection::vec(any::<u8>(), n))),
            rest in proptest::collection::vec(any::<u8>(), 0..3000),
        ) {
            let (front, by) = pair;
            let whole = |front: &[u8]| crc32c::crc32c(&[front, &rest].concat());
            prop_assert_eq!(replace_front(whole(&front), &front, &by, rest.len()), whole(&by));
        }

        #[test]
        fn appending_zeros_equals_the_other_implementations_combine(difference in any::<u32>(), bytes in 0usize..(1 << 40)) {
            prop_assert_eq!(append_zeros(difference, bytes), crc32c::crc32c_combine(difference, 0, bytes));
        }
    }
}
