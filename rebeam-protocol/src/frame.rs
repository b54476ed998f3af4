//! Frames over byte slices: a little-endian `u32` length, a postcard header, and the payload behind it.
//!
//! The length counts header and payload. The payload is whatever follows the header, so that a message passes from
//! one socket to another without its payload being decoded or copied. Nothing is allocated before the length has been
//! checked against a bound. No I/O here: tokio's side and the worker's blocking side both build on these functions.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of the length prefix.
pub const PREFIX: usize = 4;

/// The default bound of one frame, header and payload together, in bytes.
pub const MAX_FRAME: usize = 256 * 1024 * 1024;

/// By how much a frame may be longer than its bound when it is passed on: its head tells more then.
pub const HEAD_ROOM: usize = 1024 * 1024;

/// What may be wrong with bytes that claim to be a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length prefix is above the bound.
    #[error("a frame of {length} bytes, where the limit is {limit}")]
    TooLarge {
        /// What the prefix said.
        length: usize,
        /// The bound in force.
        limit: usize,
    },
    /// The header does not decode.
    #[error("a frame whose header does not decode: {0}")]
    BadHeader(postcard::Error),
}

/// The length of the frame at the start of `bytes`, prefix not counted; `None` if the prefix is not whole yet.
///
/// # Errors
/// [`FrameError::TooLarge`] as soon as the prefix is there.
pub fn length(bytes: &[u8], limit: usize) -> Result<Option<usize>, FrameError> {
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else { return Ok(None) };
    let length = u32::from_le_bytes(*prefix) as usize;
    if length > limit { Err(FrameError::TooLarge { length, limit }) } else { Ok(Some(length)) }
}

/// Appends a frame to `out`.
///
/// # Errors
/// [`FrameError::TooLarge`]; `out` is then as it was.
pub fn encode<T: Serialize>(header: &T, payload: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), FrameError> {
    encode_head(header, payload.len(), limit, out)?;
    out.extend_from_slice(payload);
    Ok(())
}

/// Appends all of a frame but its payload, which the caller writes right behind it.
///
/// # Errors
/// [`FrameError::TooLarge`]; `out` is then as it was.
pub fn encode_head<T: Serialize>(
    header: &T,
    payload_length: usize,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX]);
    if let Err(error) = postcard::to_io(header, &mut *out) {
        out.truncate(start);
        return Err(FrameError::BadHeader(error));
    }
    let length = out.len() - start - PREFIX + payload_length;
    match u32::try_from(length) {
        Ok(prefix) if length <= limit => {
            out[start..start + PREFIX].copy_from_slice(&prefix.to_le_bytes());
            Ok(())
        }
        _ => {
            out.truncate(start);
            Err(FrameError::TooLarge { length, limit })
        }
    }
}

/// Splits the body of a frame (what follows the prefix) into its header and the offset where its payload begins.
///
/// # Errors
/// [`FrameError::BadHeader`].
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<(T, usize), FrameError> {
    let (header, payload) = postcard::take_from_bytes(body).map_err(FrameError::BadHeader)?;
    Ok((header, body.len() - payload.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_over_the_limit_is_refused_by_both_ends_before_any_copy() {
        let mut out = b"before".to_vec();
        let refused = encode(&1u8, &[0; 100], 64, &mut out);
        assert_eq!(refused, Err(FrameError::TooLarge { length: 101, limit: 64 }));
        assert_eq!(out, b"before");
        assert_eq!(length(&[101, 0, 0, 0], 64), Err(FrameError::TooLarge { length: 101, limit: 64 }));
    }

    #[test]
    fn a_prefix_in_parts_is_waited_for() {
        assert_eq!(length(&[1, 0, 0], 64), Ok(None));
        assert_eq!(length(&[1, 0, 0, 0], 64), Ok(Some(1)));
    }
}
