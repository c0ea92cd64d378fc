//! Decompression and compression of a batch's records, for the batches that have to be encoded again. Never on the fast path.

use std::io::{Read, Write};

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use standfast_wire::batch::Compression;

/// Bytes that the records of one batch may take uncompressed. Guards the memory from a batch that claims gigabytes.
pub(crate) const MAX_RECORDS_BYTES: usize = 64 << 20;

/// Framing of Java's snappy streams: magic, version 1, compatible from 1, then length-prefixed blocks.
const XERIAL: [u8; 16] = [
    0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1,
];
const XERIAL_MAGIC: usize = 8;
const XERIAL_BLOCK: usize = 32 << 10;

/// As Kafka's own producer compresses by default.
const ZSTD_LEVEL: i32 = 3;
/// Window of a zstd frame, as a power of two; 128 MiB is the most that any encoder asks for without being told to.
const ZSTD_WINDOW_MAX: u32 = 27;

/// The records of a batch, uncompressed.
pub(crate) fn decompress(compression: Compression, body: &[u8]) -> Result<Vec<u8>, String> {
    match compression {
        Compression::None if body.len() > MAX_RECORDS_BYTES => Err(too_large()),
        Compression::None => Ok(body.to_vec()),
        Compression::Gzip => bounded(MultiGzDecoder::new(body)),
        Compression::Snappy => snappy(body),
        Compression::Lz4 => bounded(lz4_flex::frame::FrameDecoder::new(body)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(text)?;
            decoder.window_log_max(ZSTD_WINDOW_MAX).map_err(text)?;
            bounded(decoder)
        }
        Compression::Unknown(codec) => Err(format!("compression codec {codec} is not known")),
    }
}

/// Compresses records; the same bytes for the same input and version of Standfast.
pub(crate) fn compress(compression: Compression, records: Vec<u8>) -> Result<Vec<u8>, String> {
    match compression {
        Compression::None => Ok(records),
        Compression::Gzip => {
            let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            gzip.write_all(&records).map_err(text)?;
            gzip.finish().map_err(text)
        }
        Compression::Snappy => {
            let mut out = XERIAL.to_vec();
            let mut encoder = snap::raw::Encoder::new();
            for block in records.chunks(XERIAL_BLOCK) {
                let block = encoder.compress_vec(block).map_err(text)?;
                out.extend_from_slice(
                    &u32::try_from(block.len()).unwrap_or(u32::MAX).to_be_bytes(),
                );
                out.extend_from_slice(&block);
            }
            Ok(out)
        }
        Compression::Lz4 => {
            let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
            lz4.write_all(&records).map_err(text)?;
            lz4.finish().map_err(text)
        }
        Compression::Zstd => zstd::stream::encode_all(records.as_slice(), ZSTD_LEVEL).map_err(text),
        Compression::Unknown(codec) => Err(format!("compression codec {codec} is not known")),
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn too_large() -> String {
    format!(
        "its records take more than {} MiB uncompressed, the most that is decoded",
        MAX_RECORDS_BYTES >> 20
    )
}

fn bounded(from: impl Read) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    from.take(MAX_RECORDS_BYTES as u64 + 1)
        .read_to_end(&mut out)
        .map_err(text)?;
    if out.len() > MAX_RECORDS_BYTES {
        return Err(too_large());
    }
    Ok(out)
}

/// With or without the framing of Java's streams.
fn snappy(body: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    if body.get(..XERIAL_MAGIC) != XERIAL.get(..XERIAL_MAGIC) {
        snappy_block(body, &mut out)?;
        return Ok(out);
    }
    let mut rest = body.get(XERIAL.len()..).unwrap_or_default();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let (block, after) = after
            .split_at_checked(length)
            .ok_or("a snappy block is cut off")?;
        snappy_block(block, &mut out)?;
        rest = after;
    }
    Ok(out)
}

fn snappy_block(block: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let claimed = snap::raw::decompress_len(block).map_err(text)?;
    if out.len().saturating_add(claimed) > MAX_RECORDS_BYTES {
        return Err(too_large());
    }
    let block = snap::raw::Decoder::new()
        .decompress_vec(block)
        .map_err(text)?;
    out.extend_from_slice(&block);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Compression; 5] = [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ];

    #[test]
    fn every_codec_gives_back_what_it_took() {
        let records: Vec<u8> = (0..200_000u32)
            .flat_map(|n| (n / 7).to_be_bytes())
            .collect();
        for codec in ALL {
            let packed = compress(codec, records.clone()).unwrap();
            assert!(decompress(codec, &packed).unwrap() == records, "{codec:?}");
        }
    }

    #[test]
    fn a_bomb_is_refused_by_its_size_and_nonsense_by_its_form() {
        let zeros = vec![0; MAX_RECORDS_BYTES + 1];
        for codec in ALL {
            let bomb = compress(codec, zeros.clone()).unwrap();
            let error = decompress(codec, &bomb).unwrap_err();
            assert!(error.contains("64 MiB"), "{codec:?}: {error}");
        }
        for codec in ALL.into_iter().skip(1) {
            assert!(decompress(codec, b"no such thing").is_err(), "{codec:?}");
        }
        assert!(decompress(Compression::Unknown(7), b"").is_err());
    }
}
