//! The bytes of an HTTP/1 request head before any parser has made something of them: how its body is framed, or why it is refused.
//!
//! Invariant: what two parsers could read in two ways is refused, never repaired: two lengths, a length and a coding, a bare CR. The
//! outcomes are Envoy's (measured with 1.40) or stricter. Everything else about the head is left to the parser behind.

/// Methods that Envoy takes; others are refused where it does not allow custom ones.
pub const METHODS: &[&[u8]] = &[
    b"GET",
    b"POST",
    b"PUT",
    b"HEAD",
    b"DELETE",
    b"PATCH",
    b"OPTIONS",
    b"CONNECT",
    b"TRACE",
    b"COPY",
    b"LOCK",
    b"MKCOL",
    b"MOVE",
    b"PROPFIND",
    b"PROPPATCH",
    b"SEARCH",
    b"UNLOCK",
    b"BIND",
    b"REBIND",
    b"UNBIND",
    b"ACL",
    b"REPORT",
    b"MKACTIVITY",
    b"CHECKOUT",
    b"MERGE",
    b"M-SEARCH",
    b"NOTIFY",
    b"SUBSCRIBE",
    b"UNSUBSCRIBE",
    b"PURGE",
    b"MKCALENDAR",
    b"LINK",
    b"UNLINK",
    b"SOURCE",
];

/// How a body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes of body.
    Length(u64),
    /// A chunked body.
    Chunked,
}

/// The first line of a head that was read whole, and what follows the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start<'a> {
    /// One of [`METHODS`].
    pub method: &'a [u8],
    /// As it stands there; no byte of it is a control character or a space.
    pub target: &'a [u8],
    /// HTTP/1.0.
    pub http_10: bool,
    /// How its body is framed.
    pub framing: Framing,
    /// Another protocol may follow (CONNECT, `Upgrade`).
    pub opaque: bool,
}

/// Why a head is refused: status and details.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Broken, or framed in two ways.
    Malformed,
    /// A coding other than `chunked`.
    Coding,
    /// A version we do not speak.
    Version,
    /// Too long.
    TooLarge,
    /// More fields than are allowed.
    TooMany,
    /// A fragment, which no request has.
    Fragment,
    /// `OPTIONS` of no path.
    NoPath,
}

impl Refusal {
    /// Whether Envoy's codec lets it pass and the connection manager refuses it, which answers a gRPC request in gRPC.
    #[must_use]
    pub fn is_of_a_request(self) -> bool {
        matches!(self, Self::Fragment | Self::NoPath)
    }

    /// Status and details as Envoy has them.
    #[must_use]
    pub fn reply(self) -> super::LocalReply {
        match self {
            Self::Malformed => super::LocalReply::Status(400, "http1.codec_error"),
            Self::Coding => super::LocalReply::Status(501, "http1.invalid_transfer_encoding"),
            Self::Version => super::LocalReply::Status(426, "low_version"),
            Self::TooLarge => super::LocalReply::Status(431, "http1.headers_too_large"),
            Self::TooMany => super::LocalReply::Status(431, "http1.too_many_headers"),
            Self::Fragment => super::LocalReply::Status(400, "path_normalization_failed"),
            Self::NoPath => super::LocalReply::Status(404, "absolute_path_rejected"),
        }
    }
}

/// Where the first head in `bytes` ends, one past its empty line; `from` is how far a search has come before.
#[must_use]
pub fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    let start = from.saturating_sub(3);
    let mut rest = bytes.get(start..)?;
    let mut at = start;
    while let Some(found) = memchr::memchr(b'\n', rest) {
        at = at.saturating_add(found).saturating_add(1);
        rest = bytes.get(at..)?;
        if rest.starts_with(b"\n") {
            return Some(at.saturating_add(1));
        }
        if rest.starts_with(b"\r\n") {
            return Some(at.saturating_add(2));
        }
    }
    None
}

/// Whether bytes without an end of head may still become one.
#[must_use]
pub fn may_begin(bytes: &[u8]) -> bool {
    let line = bytes.strip_prefix(b"\r\n").or_else(|| bytes.strip_prefix(b"\n")).unwrap_or(bytes);
    let word = line.split(|b| *b == b' ').next().unwrap_or_default();
    let complete = word.len() < line.len();
    line.is_empty() || line == b"\r" || METHODS.iter().any(|m| if complete { *m == word } else { m.starts_with(word) })
}

/// Reads a whole head, its empty line included. `field` is given each field in its place, its value without the space around it.
///
/// # Errors
/// Why it is refused; nothing of the connection may be believed after it.
pub fn read<'a>(
    head: &'a [u8],
    accept_http_10: bool,
    mut field: impl FnMut(&'a [u8], &'a [u8]),
) -> Result<Start<'a>, Refusal> {
    let mut rest = head.strip_prefix(b"\r\n").or_else(|| head.strip_prefix(b"\n")).unwrap_or(head);
    let request = line(&mut rest);
    let mut framing = Fields::default();
    while !rest.is_empty() {
        let line = line(&mut rest);
        match line.first() {
            None => continue,
            // A folded line belongs to the one before for some, and is a field of its own for others.
            Some(b' ' | b'\t') => return Err(Refusal::Malformed),
            Some(_) => {}
        }
        let colon = line.iter().position(|b| !is_token(*b)).filter(|at| *at > 0 && line.get(*at) == Some(&b':'));
        let (name, value) = line.split_at(colon.ok_or(Refusal::Malformed)?);
        let value = value.get(1..).unwrap_or_default();
        // The only CRs are those before an LF: others end a line for some parsers and not for others.
        if has_control(value) {
            return Err(Refusal::Malformed);
        }
        let value = value.trim_ascii();
        if let Err(refusal) = framing.field(name, value) {
            // Folded, the value is another one; that is told first.
            let folds = |line: &[u8]| matches!(line.first(), Some(b' ' | b'\t'));
            return Err(if rest.split(|b| *b == b'\n').any(folds) { Refusal::Malformed } else { refusal });
        }
        field(name, value);
    }
    if request.contains(&b'\r') {
        return Err(Refusal::Malformed);
    }
    let (method, rest) = request.split_at(request.iter().position(|b| *b == b' ').unwrap_or(request.len()));
    if !METHODS.contains(&method) {
        return Err(Refusal::Malformed);
    }
    let mut words = rest.trim_ascii().splitn(2, |b| *b == b' ');
    let (target, version) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().trim_ascii());
    let http_10 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" if accept_http_10 => true,
        version if version.starts_with(b"HTTP/") && !version.contains(&b' ') => return Err(Refusal::Version),
        // A target alone is HTTP/0.9.
        b"" => return Err(Refusal::Version),
        _ => return Err(Refusal::Malformed),
    };
    if method == b"OPTIONS" && target.starts_with(b"*") && target != b"*" {
        return Err(Refusal::NoPath);
    }
    if !target_is_known(method, target) || target.iter().any(|b| *b <= b' ' || *b == 0x7f) {
        return Err(Refusal::Malformed);
    }
    if target.contains(&b'#') {
        return Err(Refusal::Fragment);
    }
    let opaque = method == b"CONNECT" || framing.upgrade;
    Ok(Start { method, target, http_10, framing: framing.body()?, opaque })
}

/// Takes a line off, its end included; given without it.
fn line<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
    let (line, after) = rest.split_at(end);
    *rest = after.get(1..).unwrap_or_default();
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The first value of a field of a head that was judged before, by its name in lower case.
#[must_use]
pub fn field<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    head.split(|b| *b == b'\n').skip(1).find_map(|line| {
        let (field, value) = line.split_at(line.iter().position(|b| *b == b':')?);
        field.eq_ignore_ascii_case(name).then(|| value.get(1..).unwrap_or_default().trim_ascii())
    })
}

/// The forms of RFC 9112 §3.2 that name a path, and that of CONNECT.
fn target_is_known(method: &[u8], target: &[u8]) -> bool {
    let scheme = |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let asterisk = method == b"OPTIONS" && target == b"*";
    method == b"CONNECT" || asterisk || target.starts_with(b"/") || scheme(b"http://") || scheme(b"https://")
}

#[derive(Default)]
struct Fields {
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

impl Fields {
    fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), Refusal> {
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
            if self.length.is_some() || number.is_none() {
                return Err(Refusal::Malformed);
            }
            self.length = number;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::Coding);
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade = true;
        }
        Ok(())
    }

    fn body(&self) -> Result<Framing, Refusal> {
        match (self.length, self.chunked) {
            (Some(_), true) => Err(Refusal::Malformed),
            (None, true) => Ok(Framing::Chunked),
            (length, false) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }
}

/// A byte of a field's name (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let (mut at, marks) = (0_u8, b"!#$%&'*+-.^_`|~");
        while at < 128 {
            table[at as usize] = at.is_ascii_alphanumeric();
            at += 1;
        }
        let mut mark = 0;
        while mark < marks.len() {
            table[marks[mark] as usize] = true;
            mark += 1;
        }
        table
    };
    TOKEN.get(usize::from(byte)).copied().unwrap_or(false)
}

/// Whether there is what no field's value holds. Looks at all of it, many bytes at a time.
fn has_control(value: &[u8]) -> bool {
    value.iter().fold(false, |found, b| found | ((*b < 0x20) & (*b != b'\t')) | (*b == 0x7f))
}

/// Follows a chunked body to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunks {
    /// In the line of a size: the size so far and its digits, and whether the extension has begun.
    Size {
        /// So far.
        size: u64,
        /// Digits so far.
        digits: u8,
        /// Behind the size.
        extension: bool,
        /// The last byte was CR.
        cr: bool,
    },
    /// So many bytes of data are left.
    Data(u64),
    /// The line end behind the data; so many bytes of it were there.
    DataEnd(u8),
    /// In the trailers: bytes of the line so far (at most two are counted), and whether the last was CR.
    Trailers {
        /// Whether the line has anything in it.
        empty: bool,
        /// Whether its name is over.
        named: bool,
        /// The last byte was CR.
        cr: bool,
    },
    /// Over.
    Done,
}

impl Default for Chunks {
    fn default() -> Self {
        Self::Size { size: 0, digits: 0, extension: false, cr: false }
    }
}

impl Chunks {
    /// Takes a byte that is none of a chunk's data.
    ///
    /// # Errors
    /// The body is broken from here on.
    pub fn frame(&mut self, byte: u8) -> Result<(), Refusal> {
        *self = self.byte(byte)?;
        Ok(())
    }

    /// Counts data that was taken; no more than is left of the chunk.
    pub fn data(&mut self, taken: u64) {
        if let Self::Data(left) = self {
            *left = left.saturating_sub(taken);
            if *left == 0 {
                *self = Self::DataEnd(0);
            }
        }
    }

    /// Takes bytes; gives how many belong to the body.
    ///
    /// # Errors
    /// The body is broken from here on.
    #[cfg(test)]
    fn take(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut at = 0_usize;
        while let Some(byte) = bytes.get(at) {
            if let Self::Data(left) = self {
                let here = bytes.len().saturating_sub(at);
                let step = usize::try_from(*left).unwrap_or(usize::MAX).min(here);
                at = at.saturating_add(step);
                *left = left.saturating_sub(u64::try_from(step).unwrap_or(u64::MAX));
                if *left == 0 {
                    *self = Self::DataEnd(0);
                }
                continue;
            }
            *self = self.byte(*byte)?;
            at = at.saturating_add(1);
            if *self == Self::Done {
                break;
            }
        }
        Ok(at)
    }

    fn byte(self, byte: u8) -> Result<Self, Refusal> {
        let bad = Err(Refusal::Malformed);
        match self {
            Self::Size { size, digits, cr: true, .. } => match (byte, digits, size) {
                (b'\n', 1.., 0) => Ok(Self::Trailers { empty: true, named: false, cr: false }),
                (b'\n', 1.., size) => Ok(Self::Data(size)),
                _ => bad,
            },
            Self::Size { size, digits, extension, cr: false } => match byte {
                b'\r' => Ok(Self::Size { size, digits, extension, cr: true }),
                b'\n' => bad,
                _ if extension => Ok(self),
                b';' | b' ' | b'\t' if digits > 0 => Ok(Self::Size { size, digits, extension: true, cr: false }),
                _ => match char::from(byte).to_digit(16) {
                    Some(digit) if digits < 15 => {
                        let size = size.saturating_mul(16).saturating_add(u64::from(digit));
                        Ok(Self::Size { size, digits: digits.saturating_add(1), extension: false, cr: false })
                    }
                    _ => bad,
                },
            },
            Self::DataEnd(0) if byte == b'\r' => Ok(Self::DataEnd(1)),
            Self::DataEnd(1) if byte == b'\n' => Ok(Self::default()),
            Self::DataEnd(_) => bad,
            Self::Trailers { empty: true, cr: true, .. } if byte == b'\n' => Ok(Self::Done),
            Self::Trailers { empty: false, named: true, cr: true } if byte == b'\n' => {
                Ok(Self::Trailers { empty: true, named: false, cr: false })
            }
            Self::Trailers { cr: true, .. } => bad,
            Self::Trailers { empty, named, cr: false } => match byte {
                b'\r' => Ok(Self::Trailers { empty, named, cr: true }),
                b':' if !empty => Ok(Self::Trailers { empty, named: true, cr: false }),
                _ if named && (byte >= 0x20 || byte == b'\t') && byte != 0x7f => Ok(self),
                _ if !named && is_token(byte) => Ok(Self::Trailers { empty: false, named, cr: false }),
                _ => bad,
            },
            Self::Data(_) | Self::Done => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_end_at_the_first_empty_line() {
        let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET";
        for from in 0..bytes.len() {
            let end = head_end(bytes, from);
            assert!(end == Some(27) || from > 27, "{from}: {end:?}");
        }
        assert_eq!(head_end(b"a\n\nb", 0), Some(3));
        assert_eq!(head_end(b"a\r\n\r", 0), None);
        for bad in [&b"\x16\x03"[..], b"GETX", b"get ", b" GET", b"\x80"] {
            assert!(!may_begin(bad), "{bad:?}");
        }
        for good in [&b""[..], b"\r", b"\r\n", b"G", b"GET /x", b"\r\nPO"] {
            assert!(may_begin(good), "{good:?}");
        }
    }

    #[test]
    fn a_field_is_found_whatever_its_case() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nContent-Type:  application/grpc \r\ncontent-type: b\r\n\r\n";
        assert_eq!(field(head, b"content-type"), Some(&b"application/grpc"[..]));
        assert_eq!(field(head, b"get / http/1.1"), None);
        assert_eq!(field(b"", b"content-type"), None);
    }

    #[test]
    fn chunks_end_where_they_end() {
        let run = |text: &str| {
            let mut whole = Chunks::default();
            let taken = whole.take(text.as_bytes());
            let mut single = Chunks::default();
            let mut each = Ok(0);
            for byte in text.bytes() {
                if single == Chunks::Done {
                    break;
                }
                each = each.and_then(|n: usize| single.take(&[byte]).map(|m| n + m));
            }
            assert_eq!(taken, each, "{text:?} at once and byte by byte");
            taken.map(|n| (n, whole == Chunks::Done))
        };
        assert_eq!(run("1\r\nx\r\n0\r\n\r\nGET"), Ok((11, true)));
        assert_eq!(run("1;a=b\r\nx\r\n0\r\nT: 1\r\n\r\n"), Ok((21, true)));
        assert_eq!(run("a\r\nx"), Ok((4, false)));
        for bad in [
            "zz\r\n",
            "-1\r\n",
            "\r\n",
            "+1\r\n",
            "0x1\r\n",
            "1\nx",
            "1\r\nxy\r\n",
            "ffffffffffffffffff\r\n",
            "1;a\rb\r\n",
            "0\r\nX T: y\r\n",
            "0\r\nXT\r\n",
        ] {
            assert!(run(bad).is_err(), "{bad:?}");
        }
    }
}
