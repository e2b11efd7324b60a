//! `exec` and `attach` over SPDY: one stream for each of error, stdin, stdout, stderr and the terminal's size.
//!
//! Invariant: the guest is asked for only when all streams that the request named are there.

use super::connection::{Reader, Received, Stream, Streams, Writer};
use crate::pods::Want;
use crate::session::{Caller, Channel, Input, Output, size};
use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;
use tokio::sync::mpsc;

/// For the caller to open its streams.
const OPENING: Duration = Duration::from_secs(30);
/// Text of a terminal's size that is not whole yet.
const SIZE_TEXT: usize = 1024;

/// Serves one session; `guest` runs it.
pub(crate) async fn serve(mut streams: Streams, want: Want, caller: Caller, guest: impl Future<Output = ()>) {
    let Ok(Some(mut opened)) = tokio::time::timeout(OPENING, open(&mut streams, want)).await else {
        return tracing::debug!("the caller opened too few streams");
    };
    let Some(error) = opened.remove("error") else { return };
    let (_, error) = error.split();
    let Caller { input, output } = caller;
    let stdin = opened.remove("stdin").map(|s| typed(s.split().0, input.clone()));
    let resize = opened.remove("resize").map(|s| sizes(s.split().0, input.clone()));
    let mut writers = Vec::new();
    for (name, channel) in [("stdout", Channel::Stdout), ("stderr", Channel::Stderr)] {
        writers.extend(opened.remove(name).map(|s| (channel, s.split().1)));
    }
    let taking = async {
        tokio::join!(maybe(stdin), maybe(resize));
        // The caller is there as long as its connection is.
        std::future::pending::<()>().await;
        drop(input);
    };
    let working = async { tokio::join!(guest, show(output, writers, error)) };
    tokio::select! {
        () = taking => {}
        ((), ()) = working => {}
    }
}

async fn maybe(work: Option<impl Future<Output = ()>>) {
    if let Some(work) = work {
        work.await;
    }
}

/// Waits for the streams that are wanted.
async fn open(streams: &mut Streams, want: Want) -> Option<BTreeMap<String, Stream>> {
    let mut opened = BTreeMap::new();
    let names = [
        ("error", true),
        ("stdin", want.stdin),
        ("stdout", want.stdout),
        ("stderr", want.stderr && !want.tty),
        ("resize", want.tty),
    ];
    while names.iter().any(|(name, wanted)| *wanted && !opened.contains_key(*name)) {
        let stream = streams.recv().await?;
        let name = stream.header("streamtype").to_owned();
        if names.iter().any(|(known, _)| *known == name) {
            opened.insert(name, stream);
        }
    }
    Some(opened)
}

async fn typed(mut reader: Reader, input: mpsc::Sender<Input>) {
    loop {
        let (sent, last) = match reader.next().await {
            Received::Data(bytes) => (Input::Stdin(bytes), false),
            Received::End | Received::Reset => (Input::StdinEnd, true),
        };
        if input.send(sent).await.is_err() || last {
            return;
        }
    }
}

async fn sizes(mut reader: Reader, input: mpsc::Sender<Input>) {
    let mut text = Vec::new();
    while let Received::Data(bytes) = reader.next().await {
        text.extend_from_slice(&bytes);
        let mut values = serde_json::Deserializer::from_slice(&text).into_iter();
        let mut last = None;
        while let Some(Ok(value)) = values.next() {
            last = size(&value).or(last);
        }
        let read = values.byte_offset();
        text.drain(..read.min(text.len()));
        if let Some(size) = last
            && input.send(Input::Resize(size)).await.is_err()
        {
            return;
        }
        if text.len() > SIZE_TEXT {
            return;
        }
    }
}

async fn show(mut output: mpsc::Receiver<Output>, writers: Vec<(Channel, Writer)>, error: Writer) {
    let writer = |channel| writers.iter().find(|(c, _)| *c == channel).map(|(_, writer)| writer);
    while let Some(out) = output.recv().await {
        match out {
            Output::Data(channel, bytes) => {
                if let Some(writer) = writer(channel)
                    && !writer.data(bytes).await
                {
                    return;
                }
            }
            Output::End(channel) => {
                if let Some(writer) = writer(channel) {
                    writer.end().await;
                }
            }
            Output::Status(status) => {
                error.data(status).await;
                for (_, writer) in &writers {
                    writer.end().await;
                }
                error.end().await;
                return;
            }
        }
    }
}
