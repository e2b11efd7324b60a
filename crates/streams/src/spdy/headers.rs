//! Header blocks of SPDY/3: names and values, compressed by zlib with a dictionary that both sides know.
//!
//! Invariant: a block unpacks to at most [`UNPACKED`] bytes. What we send is stored, not compressed: it is a valid stream for every reader
//! and needs no state beyond "the first block has been sent".

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

/// A block's length when it is unpacked.
const UNPACKED: usize = 64 << 10;
/// Pairs in a block.
const PAIRS: u32 = 256;

/// Words of the dictionary; each stands there with its length before it.
const WORDS: &str = "options|head|post|put|delete|trace|accept|accept-charset|accept-encoding|accept-language|accept-ranges|age|allow|authorization|cache-control|connection|content-base|content-encoding|content-language|content-length|content-location|content-md5|content-range|content-type|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|location|max-forwards|pragma|proxy-authenticate|proxy-authorization|range|referer|retry-after|server|te|trailer|transfer-encoding|upgrade|user-agent|vary|via|warning|www-authenticate|method|get|status|200 OK|version|HTTP/1.1|url|public|set-cookie|keep-alive|origin";
/// And what follows them.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// A block that cannot be read: the connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bad header block")]
pub(crate) struct BlockError;

fn dictionary() -> Vec<u8> {
    let mut out = Vec::with_capacity(1423);
    for word in WORDS.split('|') {
        out.put_u32(u32::try_from(word.len()).unwrap_or(0));
        out.put_slice(word.as_bytes());
    }
    out.put_slice(TAIL.as_bytes());
    out
}

/// Reads the blocks of one connection, in their order.
pub(crate) struct Inflater {
    state: Decompress,
}

impl Inflater {
    pub(crate) fn new() -> Self {
        Self { state: Decompress::new(true) }
    }

    /// Names in lower case and values of a block.
    pub(crate) fn read(&mut self, block: &[u8]) -> Result<Vec<(String, String)>, BlockError> {
        pairs(Bytes::from(self.inflate(block)?))
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, BlockError> {
        let mut out = Vec::with_capacity(1024);
        loop {
            let (read, written) = (self.state.total_in(), self.state.total_out());
            let outcome = self.state.decompress_vec(input, &mut out, FlushDecompress::Sync);
            let taken = usize::try_from(self.state.total_in().saturating_sub(read)).map_err(|_| BlockError)?;
            input = input.get(taken..).ok_or(BlockError)?;
            match outcome {
                Ok(Status::StreamEnd) => return Err(BlockError),
                Ok(Status::Ok | Status::BufError) => {
                    if out.len() > UNPACKED {
                        return Err(BlockError);
                    }
                    if out.len() == out.capacity() {
                        out.reserve(out.len());
                    } else if input.is_empty() {
                        return Ok(out);
                    } else if taken == 0 && self.state.total_out() == written {
                        return Err(BlockError);
                    }
                }
                Err(error) if error.needs_dictionary().is_some() => {
                    self.state.set_dictionary(&dictionary()).map_err(|_| BlockError)?;
                }
                Err(_) => return Err(BlockError),
            }
        }
    }
}

fn pairs(mut bytes: Bytes) -> Result<Vec<(String, String)>, BlockError> {
    let number = |bytes: &mut Bytes| bytes.try_get_u32().map_err(|_| BlockError);
    let count = number(&mut bytes)?;
    if count > PAIRS {
        return Err(BlockError);
    }
    let mut pairs = Vec::new();
    for _ in 0..count {
        let mut text = || {
            let length = usize::try_from(number(&mut bytes)?).map_err(|_| BlockError)?;
            if length > bytes.len() {
                return Err(BlockError);
            }
            let text = std::str::from_utf8(&bytes.split_to(length)).map(str::to_owned);
            text.map_err(|_| BlockError)
        };
        let (name, value) = (text()?, text()?);
        pairs.push((name.to_ascii_lowercase(), value));
    }
    Ok(pairs)
}

/// A block without any header; `first` says that none has been sent on this connection.
pub(crate) fn empty_block(first: bool) -> Bytes {
    let mut out = BytesMut::new();
    if first {
        // zlib: deflate, window of 32 KiB, no dictionary.
        out.put_slice(&[0x78, 0x01]);
    }
    // A stored block of four bytes, a count of zero, then the empty block that makes readers hand it out.
    out.put_slice(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0]);
    out.put_slice(&[0, 0, 0, 0xff, 0xff]);
    out.freeze()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};

    /// As callers pack them.
    pub(crate) fn pack(state: &mut Compress, pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = Vec::new();
        plain.put_u32(u32::try_from(pairs.len()).unwrap());
        for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
            plain.put_u32(u32::try_from(text.len()).unwrap());
            plain.put_slice(text.as_bytes());
        }
        let mut out = Vec::with_capacity(plain.len() + 1024);
        state.compress_vec(&plain, &mut out, FlushCompress::Sync).unwrap();
        out
    }

    pub(crate) fn packer() -> Compress {
        let mut state = Compress::new(Compression::best(), true);
        // The checksum that SPDY/3 gives for its dictionary.
        assert_eq!(state.set_dictionary(&dictionary()).unwrap(), 0xe3c6_a7c2);
        state
    }

    #[test]
    fn blocks_of_one_connection() {
        let (mut packer, mut inflater) = (packer(), Inflater::new());
        for round in 0..50 {
            let value = format!("round {round}");
            let block = pack(&mut packer, &[("Streamtype", "error"), ("port", "8080"), ("requestid", &value)]);
            let read = inflater.read(&block).unwrap();
            let expected = [("streamtype", "error"), ("port", "8080"), ("requestid", value.as_str())];
            assert_eq!(read, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
        }
    }

    #[test]
    fn our_own_block_is_readable() {
        let mut inflater = Inflater::new();
        for round in 0..3 {
            assert_eq!(inflater.read(&empty_block(round == 0)).unwrap(), []);
        }
    }

    #[test]
    fn bombs_and_damage_are_refused() {
        let huge = "a".repeat(1 << 20);
        let block = pack(&mut packer(), &[("x", &huge)]);
        assert!(block.len() < 4096);
        assert_eq!(Inflater::new().read(&block), Err(BlockError));
        let good = pack(&mut packer(), &[("streamtype", "data"), ("port", "1")]);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            let _returns = Inflater::new().read(&bad);
            let _returns = Inflater::new().read(&good[..at]);
        }
        let many = [0_u32.wrapping_sub(1).to_be_bytes(), [0; 4]].concat();
        assert_eq!(pairs(many.into()), Err(BlockError));
    }
}
