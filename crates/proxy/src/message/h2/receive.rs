//! Frames that come (RFC 9113 §6), and what they do.
//!
//! Invariant: an error of a stream ends that stream, one of the connection all of them, and which it is is the RFC's choice. A header block
//! is read even where nobody wants its message, for the table's sake.

use super::core::{Block, Core, Goodbye, Side, WIDEST, preface};
use super::fault::{Fault, Reason};
use super::frame::{self, ACK, END_HEADERS, END_STREAM, HEAD, Head, LARGEST, WITH_PRIORITY, setting};
use super::message::{Collected, NoMessage};
use super::stream::{SMALL, Stream};
use super::{ALIVE, LEAVING, limits};
use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode, header};
use std::task::Waker;

type Done = Result<(), Fault>;

fn protocol(what: &'static str) -> Fault {
    Fault::Ours(Reason::PROTOCOL, what)
}

fn size(what: &'static str) -> Fault {
    Fault::Ours(Reason::SIZE, what)
}

fn number(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

impl Core {
    /// Takes all whole frames off what was read.
    pub(super) fn frames(&mut self, input: &mut BytesMut) -> Done {
        if self.preface > 0 {
            preface(&mut self.preface, input)?;
        }
        while self.preface == 0
            && let Some(head) = Head::read(input)
        {
            if head.length > LARGEST {
                return Err(size("a frame larger than allowed"));
            }
            let end = head.length.saturating_add(HEAD);
            if input.len() < end {
                // So that the rest fits behind it.
                input.reserve(end.saturating_sub(input.len()));
                return Ok(());
            }
            if let Some(block) = &self.block
                && (head.kind != frame::CONTINUATION || head.stream != block.stream)
            {
                return Err(protocol("a frame within a header block"));
            }
            if !self.peer.settled && head.kind != frame::SETTINGS {
                return Err(protocol("no SETTINGS first"));
            }
            if head.kind == frame::DATA {
                input.advance(HEAD);
                let payload = if head.length <= SMALL {
                    let copy = Bytes::copy_from_slice(input.get(..head.length).unwrap_or_default());
                    input.advance(head.length);
                    copy
                } else {
                    input.split_to(head.length).freeze()
                };
                self.on_data(&head, payload)?;
            } else {
                self.on_frame(&head, input.get(HEAD..end).unwrap_or_default())?;
                input.advance(end);
            }
            if self.owed > limits::OWED {
                return Err(Fault::Ours(Reason::CALM, "too many frames that want an answer"));
            }
        }
        Ok(())
    }

    fn on_frame(&mut self, head: &Head, payload: &[u8]) -> Done {
        match head.kind {
            frame::HEADERS => self.on_headers(head, payload),
            frame::CONTINUATION => self.on_continuation(head, payload),
            frame::PRIORITY if head.stream == 0 => Err(protocol("PRIORITY of the connection")),
            frame::PRIORITY if head.length != 5 => Err(size("PRIORITY")),
            frame::PRIORITY => self.conduct.priority(),
            frame::RST_STREAM => self.on_reset(head, payload),
            frame::SETTINGS => self.on_settings(head, payload),
            frame::PUSH_PROMISE => Err(protocol("PUSH_PROMISE")),
            frame::PING => self.on_ping(head, payload),
            frame::GOAWAY => self.on_goaway(head, payload),
            frame::WINDOW_UPDATE => self.on_window(head, payload),
            // What we do not know is ignored (§4.1), but not without end.
            _ => self.conduct.priority(),
        }
    }

    fn stream_error(&mut self, id: u32, reason: Reason, what: &'static str) -> Done {
        tracing::debug!(stream = id, code = reason.0, "HTTP/2 stream: {what}");
        self.reset(id, reason, Fault::Ours(reason, what));
        self.conduct.give_up()
    }

    fn on_data(&mut self, head: &Head, mut data: Bytes) -> Done {
        let id = head.stream;
        let whole = i64::try_from(head.length).unwrap_or(i64::MAX);
        if self.is_idle(id) {
            return Err(protocol("DATA of no stream"));
        }
        self.receive_window = self.receive_window.saturating_sub(whole);
        if self.receive_window < 0 {
            return Err(Fault::Ours(Reason::FLOW, "more DATA than the connection's window"));
        }
        if head.has(frame::PADDED) {
            let length = frame::unpadded(head, &data).map(<[u8]>::len).ok_or(protocol("padding"))?;
            data = data.slice(1..length.saturating_add(1));
        }
        let ends = head.has(END_STREAM);
        self.conduct.carries(data.is_empty() && !ends)?;
        let padding = head.length.saturating_sub(data.len());
        let length = data.len();
        let Some(stream) = self.streams.get_mut(&id) else {
            self.give_back(head.length);
            // Who has not heard yet that we have reset it is not told again.
            if self.was_closed(id) != Some(true) {
                return self.stream_error(id, Reason::CLOSED, "DATA of a closed stream");
            }
            return Ok(());
        };
        stream.receive_window = stream.receive_window.saturating_sub(whole);
        let left = match stream.left {
            Some(left) => left.checked_sub(u64::try_from(length).unwrap_or(u64::MAX)).map(Some),
            None => Some(None),
        };
        let wrong = if stream.fault.is_some() {
            self.give_back(head.length);
            return Ok(());
        } else if stream.ended {
            Some((Reason::CLOSED, "DATA behind the end of a stream"))
        } else if stream.receive_window < 0 {
            Some((Reason::FLOW, "more DATA than a stream's window"))
        } else if !stream.begun || left.is_none() || (ends && matches!(left, Some(Some(1..)))) {
            Some((Reason::PROTOCOL, "DATA that the message does not have"))
        } else {
            None
        };
        if let Some((reason, what)) = wrong {
            self.give_back(head.length);
            return self.stream_error(id, reason, what);
        }
        (stream.left, stream.ended, stream.expects) = (left.unwrap_or(None), ends, false);
        let held = stream.held;
        if held {
            if length > 0 {
                stream.chunks.push(data);
            }
            stream.wake();
        }
        let useless = if held { padding } else { head.length };
        if useless > 0 {
            // A stream that nobody reads gets no new window.
            if held {
                self.consume(id, useless);
            } else {
                self.give_back(useless);
            }
        }
        if ends {
            self.settle(id);
        }
        Ok(())
    }

    fn on_headers(&mut self, head: &Head, payload: &[u8]) -> Done {
        if head.stream == 0 {
            return Err(protocol("HEADERS of the connection"));
        }
        let mut block = frame::unpadded(head, payload).ok_or(protocol("padding"))?;
        let mut looped = false;
        if head.has(WITH_PRIORITY) {
            let on = number(block).ok_or(size("HEADERS"))? & 0x7fff_ffff;
            looped = on == head.stream;
            block = block.get(5..).ok_or(size("HEADERS"))?;
        }
        let ends = head.has(END_STREAM);
        self.conduct.carries(block.is_empty() && !ends)?;
        if head.has(END_HEADERS) {
            return self.on_block(head.stream, ends, looped, block);
        }
        self.block = Some(Block { stream: head.stream, ends, looped, frames: 0, bytes: block.to_vec() });
        Ok(())
    }

    fn on_continuation(&mut self, head: &Head, payload: &[u8]) -> Done {
        let list = usize::try_from(self.own.list).unwrap_or(usize::MAX);
        self.conduct.carries(payload.is_empty() && !head.has(END_HEADERS))?;
        let block = self.block.as_mut().ok_or(protocol("CONTINUATION of nothing"))?;
        block.bytes.extend_from_slice(payload);
        block.frames = block.frames.saturating_add(1);
        if block.frames > limits::CONTINUATIONS
            || block.bytes.len() > list.saturating_mul(limits::BLOCK).saturating_add(LARGEST)
        {
            return Err(Fault::Ours(Reason::CALM, "a header block without end"));
        }
        match self.block.take_if(|_| head.has(END_HEADERS)) {
            Some(block) => self.on_block(block.stream, block.ends, block.looped, &block.bytes),
            None => Ok(()),
        }
    }

    /// A whole header block.
    fn on_block(&mut self, id: u32, ends: bool, looped: bool, block: &[u8]) -> Done {
        let mut collected = Collected::new(usize::try_from(self.own.list).unwrap_or(usize::MAX));
        let garbled = |_| Fault::Ours(Reason::COMPRESSION, "a header block that cannot be read");
        self.decoder.decode(block, |field, size| collected.take(field, size)).map_err(garbled)?;
        if let Some(stream) = self.streams.get_mut(&id) {
            if stream.fault.is_some() {
                return Ok(());
            }
            if stream.ended {
                return self.stream_error(id, Reason::CLOSED, "HEADERS behind the end of a stream");
            }
            if looped {
                return self.stream_error(id, Reason::PROTOCOL, "a stream that depends on itself");
            }
            return if stream.begun {
                self.on_trailers(id, ends, collected)
            } else {
                self.on_response(id, ends, collected)
            };
        }
        if self.is_idle(id) {
            if self.side == Side::Client || id.is_multiple_of(2) {
                return Err(protocol("HEADERS of no stream"));
            }
            return self.on_request(id, ends, looped, collected);
        }
        match self.was_closed(id) {
            Some(true) => Ok(()),
            Some(false) => self.stream_error(id, Reason::CLOSED, "HEADERS of a closed stream"),
            None if self.side == Side::Client => Ok(()),
            None => Err(protocol("a stream of a smaller number")),
        }
    }

    fn on_request(&mut self, id: u32, ends: bool, looped: bool, collected: Collected) -> Done {
        self.highest = id;
        self.conduct.streams = self.conduct.streams.saturating_add(1);
        if let Goodbye::Said(last) = self.goodbye
            && id > last
        {
            self.note_closed(id, true);
            return Ok(());
        }
        let open = u32::try_from(self.streams.len()).unwrap_or(u32::MAX);
        if open >= self.own.streams {
            self.note_closed(id, true);
            return self.stream_error(id, Reason::REFUSED, "more streams than allowed");
        }
        let made = if looped { Err(NoMessage::Malformed) } else { collected.request(self.own.connect) };
        let (request, left) = match made {
            Ok((_, Some(1..))) if ends => {
                self.note_closed(id, true);
                return self.stream_error(id, Reason::PROTOCOL, "no body for its length");
            }
            Ok(made) => made,
            Err(NoMessage::Malformed) => {
                self.note_closed(id, true);
                return self.stream_error(id, Reason::PROTOCOL, "a malformed request");
            }
            Err(NoMessage::TooLarge) => {
                self.note_closed(id, true);
                self.answer_too_large(id, ends);
                return Ok(());
            }
        };
        let stream = Stream {
            begun: true,
            ended: ends,
            left,
            held: !ends,
            expects: !ends && request.headers().get(header::EXPECT).is_some_and(|v| v == "100-continue"),
            receive_window: i64::from(self.own.window),
            send_window: self.peer.window,
            tunnel: *request.method() == Method::CONNECT,
            ..Stream::default()
        };
        self.streams.insert(id, stream);
        self.arrived.push_back((id, request));
        Ok(())
    }

    fn answer_too_large(&mut self, id: u32, ends: bool) {
        self.scratch.clear();
        self.encoder.begin(&mut self.scratch);
        self.encoder.status(&mut self.scratch, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        frame::block(&mut self.output.text, &self.scratch, self.peer.frame, true, id);
        if !ends {
            frame::number(&mut self.output.text, frame::RST_STREAM, id, Reason::NONE.0);
        }
        self.owed = self.owed.saturating_add(1);
    }

    fn on_response(&mut self, id: u32, ends: bool, collected: Collected) -> Done {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let head = match collected.response() {
            Ok(head) => head,
            Err(_) => return self.stream_error(id, Reason::PROTOCOL, "a malformed response"),
        };
        let status = head.response.status();
        if status.is_informational() {
            stream.interim = stream.interim.saturating_add(1);
            // There is no switching in HTTP/2 (§8.6).
            if ends || status == StatusCode::SWITCHING_PROTOCOLS || stream.interim > limits::INTERIM {
                return self.stream_error(id, Reason::PROTOCOL, "an interim response that is none");
            }
            return Ok(());
        }
        stream.bodiless |= matches!(status, StatusCode::NOT_MODIFIED | StatusCode::NO_CONTENT);
        if stream.bodiless {
            // Whatever length it tells, nothing comes of it (RFC 9110 §6.4.1, RFC 9113 §8.1.1).
            stream.left = Some(0);
        } else {
            stream.left = head.length;
            if ends && matches!(head.length, Some(1..)) {
                return self.stream_error(id, Reason::PROTOCOL, "no body for its length");
            }
        }
        (stream.begun, stream.ended) = (true, ends);
        stream.head = Some(Box::new(head));
        stream.wake();
        self.settle(id);
        Ok(())
    }

    fn on_trailers(&mut self, id: u32, ends: bool, collected: Collected) -> Done {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let trailers = match collected.trailers() {
            Ok(trailers) if ends && !matches!(stream.left, Some(1..)) => trailers,
            _ => return self.stream_error(id, Reason::PROTOCOL, "trailers that are none"),
        };
        stream.ended = true;
        if stream.held {
            stream.trailers = Some(trailers).filter(|all| !all.is_empty());
            stream.wake();
        }
        self.settle(id);
        Ok(())
    }

    fn on_reset(&mut self, head: &Head, payload: &[u8]) -> Done {
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err(protocol("RST_STREAM of no stream"));
        }
        let code = number(payload).filter(|_| head.length == 4).ok_or(size("RST_STREAM"))?;
        let Some(stream) = self.streams.get(&head.stream) else { return Ok(()) };
        let given_up = self.side == Side::Server && !stream.answered;
        let reason = Reason(code);
        let fault = if reason == Reason::REFUSED { Fault::Refused } else { Fault::Reset(reason) };
        self.end_stream(head.stream, fault, false);
        if given_up { self.conduct.give_up() } else { Ok(()) }
    }

    fn on_settings(&mut self, head: &Head, payload: &[u8]) -> Done {
        if head.stream != 0 {
            return Err(protocol("SETTINGS of a stream"));
        }
        if head.has(ACK) {
            self.peer.acknowledged = true;
            return if head.length == 0 && self.peer.settled { Ok(()) } else { Err(size("SETTINGS")) };
        }
        let (all, rest) = payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(size("SETTINGS"));
        }
        self.conduct.settings()?;
        self.peer.settled = true;
        self.unsettled.drain(..).for_each(Waker::wake);
        for [a, b, c, d, e, f] in all {
            let value = u32::from_be_bytes([*c, *d, *e, *f]);
            match u16::from_be_bytes([*a, *b]) {
                setting::TABLE => self.encoder.resize(usize::try_from(value).unwrap_or(usize::MAX)),
                setting::PUSH if value > 1 || (value == 1 && self.side == Side::Client) => {
                    return Err(protocol("ENABLE_PUSH"));
                }
                setting::STREAMS => self.peer.streams = value,
                setting::WINDOW => self.on_initial_window(value)?,
                setting::FRAME if !(16_384..1 << 24).contains(&value) => return Err(protocol("MAX_FRAME_SIZE")),
                setting::CONNECT if value > 1 => return Err(protocol("ENABLE_CONNECT_PROTOCOL")),
                setting::CONNECT => self.peer.connect = value == 1,
                _ => {}
            }
        }
        frame::head(&mut self.output.text, 0, frame::SETTINGS, ACK, 0);
        self.owed = self.owed.saturating_add(1);
        Ok(())
    }

    /// All streams' windows move by the difference, also below nothing (§6.9.2).
    fn on_initial_window(&mut self, value: u32) -> Done {
        let value = i64::from(value);
        if value > WIDEST {
            return Err(Fault::Ours(Reason::FLOW, "INITIAL_WINDOW_SIZE"));
        }
        let by = value.saturating_sub(std::mem::replace(&mut self.peer.window, value));
        for stream in self.streams.values_mut() {
            stream.send_window = stream.send_window.saturating_add(by);
            if stream.send_window > WIDEST {
                return Err(Fault::Ours(Reason::FLOW, "a stream's window"));
            }
            if stream.send_window > 0 && std::mem::take(&mut stream.blocked) {
                self.stirred.extend(stream.job);
            }
        }
        Ok(())
    }

    fn on_ping(&mut self, head: &Head, payload: &[u8]) -> Done {
        if head.stream != 0 {
            return Err(protocol("PING of a stream"));
        }
        let payload = *payload.first_chunk::<8>().filter(|_| head.length == 8).ok_or(size("PING"))?;
        if !head.has(ACK) {
            frame::ping(&mut self.output.text, ACK, payload);
            self.owed = self.owed.saturating_add(1);
        } else if payload == LEAVING && self.goodbye == Goodbye::Announced {
            self.leave_now();
        } else if payload == ALIVE {
            self.ponged = true;
        }
        Ok(())
    }

    fn on_goaway(&mut self, head: &Head, payload: &[u8]) -> Done {
        if head.stream != 0 {
            return Err(protocol("GOAWAY of a stream"));
        }
        let last = number(payload).filter(|_| head.length >= 8).ok_or(size("GOAWAY"))? & 0x7fff_ffff;
        if self.side == Side::Client {
            self.refuses = true;
            let refused: Vec<u32> = self.streams.keys().copied().filter(|id| *id > last).collect();
            for id in refused {
                self.end_stream(id, Fault::Refused, false);
            }
        }
        Ok(())
    }

    fn on_window(&mut self, head: &Head, payload: &[u8]) -> Done {
        let by = number(payload).filter(|_| head.length == 4).ok_or(size("WINDOW_UPDATE"))? & 0x7fff_ffff;
        let id = head.stream;
        self.conduct.window()?;
        if id == 0 {
            self.send_window = self.send_window.saturating_add(i64::from(by));
            if by == 0 {
                return Err(protocol("WINDOW_UPDATE by nothing"));
            }
            if self.send_window > WIDEST {
                return Err(Fault::Ours(Reason::FLOW, "the connection's window"));
            }
            self.stirred.append(&mut self.starved);
            return Ok(());
        }
        if self.is_idle(id) {
            return Err(protocol("WINDOW_UPDATE of no stream"));
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        stream.send_window = stream.send_window.saturating_add(i64::from(by));
        if by == 0 {
            return self.stream_error(id, Reason::PROTOCOL, "WINDOW_UPDATE by nothing");
        }
        if stream.send_window > WIDEST {
            return self.stream_error(id, Reason::FLOW, "a stream's window");
        }
        if stream.send_window > 0 && std::mem::take(&mut stream.blocked) {
            self.stirred.extend(stream.job);
        }
        Ok(())
    }
}
