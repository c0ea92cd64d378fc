//! Length-prefixed frames over a socket, without copying payloads.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::client::TlsStream;

use crate::error::Error;

/// Bytes read ahead, so that a small frame and its length prefix take one system call.
const READ_AHEAD: usize = 8 * 1024;
/// Slices handed to one vectored write. The system's limit is 1024 (`IOV_MAX`); more than this brings nothing.
const SLICES_PER_WRITE: usize = 64;
/// A reused frame buffer may be this many times larger than the frame, if it is above [`REUSE_ALWAYS`].
const REUSE_RATIO: usize = 4;
/// A reused frame buffer up to this size is kept whatever the frame's size.
const REUSE_ALWAYS: usize = 64 * 1024;
/// Frame buffers remembered for reuse: as many as a reader that works ahead has in use at a time. Fresh memory costs a page fault per 4 kB.
const SPENT_MAX: usize = 8;

/// The receiving half of a connection. Used in place by the task that owns it.
#[derive(Debug)]
pub struct FrameReader {
    source: ReadSide,
    broker: Arc<str>,
    max_frame_bytes: usize,
    ahead: BytesMut,
    /// The frame being read and its full length.
    frame: Option<(BytesMut, usize)>,
    /// What is left of the last frames' buffers, oldest first; the memory is reused once nobody holds slices of it.
    spent: VecDeque<BytesMut>,
}

impl FrameReader {
    fn new(source: ReadSide, broker: Arc<str>, max_frame_bytes: usize) -> Self {
        Self {
            source,
            broker,
            max_frame_bytes,
            ahead: BytesMut::with_capacity(READ_AHEAD),
            frame: None,
            spent: VecDeque::new(),
        }
    }

    /// Address of the broker.
    pub fn broker(&self) -> &Arc<str> {
        &self.broker
    }

    /// Reads one whole frame (what follows the length prefix) into one exactly sized buffer.
    ///
    /// Cancel-safe: when the future is dropped, the part already read is kept and the next call goes on from there.
    ///
    /// # Errors
    /// [`Error::Closed`] at the end of the stream, [`Error::Frame`] for a negative length or one above `max_frame_bytes`
    /// (nothing is allocated then), [`Error::Io`]. The connection cannot be used after an error.
    pub async fn read(&mut self) -> Result<Bytes, Error> {
        if self.frame.is_none() {
            let length = self.read_length().await?;
            let mut frame = self.buffer(length);
            let buffered = self.ahead.len().min(length);
            frame.extend_from_slice(&self.ahead[..buffered]);
            self.ahead.advance(buffered);
            self.frame = Some((frame, length));
        }
        loop {
            let Some((frame, length)) = self.frame.as_mut() else {
                return Err(self.bad_frame("no frame is being read".to_owned()));
            };
            let missing = *length - frame.len();
            if missing == 0 {
                break;
            }
            let read = self
                .source
                .read_buf(&mut (&mut *frame).limit(missing))
                .await;
            if self.received(read)? == 0 {
                return Err(self.closed(" in the middle of an answer"));
            }
        }
        let Some((mut frame, _)) = self.frame.take() else {
            return Err(self.bad_frame("no frame is being read".to_owned()));
        };
        let whole = frame.split().freeze();
        if self.spent.len() == SPENT_MAX {
            self.spent.pop_front();
        }
        self.spent.push_back(frame);
        Ok(whole)
    }

    async fn read_length(&mut self) -> Result<usize, Error> {
        loop {
            if let Some(prefix) = self.ahead.first_chunk::<4>() {
                let stated = i32::from_be_bytes(*prefix);
                let length = usize::try_from(stated)
                    .ok()
                    .filter(|n| *n <= self.max_frame_bytes);
                // An answer holds at least its correlation id.
                return match length {
                    Some(length) if length >= 4 => {
                        self.ahead.advance(4);
                        Ok(length)
                    }
                    _ => Err(self.bad_frame(format!(
                        "an answer of {stated} bytes is announced (4 to {} are accepted)",
                        self.max_frame_bytes
                    ))),
                };
            }
            if self.ahead.is_empty() {
                self.ahead.clear();
            }
            self.ahead.reserve(READ_AHEAD - self.ahead.len());
            let read = self.source.read_buf(&mut self.ahead).await;
            if self.received(read)? == 0 {
                let detail = if self.ahead.is_empty() {
                    ""
                } else {
                    " in the middle of an answer"
                };
                return Err(self.closed(detail));
            }
        }
    }

    fn buffer(&mut self, length: usize) -> BytesMut {
        let largest = REUSE_ALWAYS.max(length.saturating_mul(REUSE_RATIO));
        let free = self
            .spent
            .iter_mut()
            .position(|spent| spent.try_reclaim(length) && spent.capacity() <= largest);
        free.and_then(|at| self.spent.remove(at))
            .unwrap_or_else(|| BytesMut::with_capacity(length))
    }

    fn received(&self, read: io::Result<usize>) -> Result<usize, Error> {
        read.map_err(|error| Error::io(&self.broker, "read", error))
    }

    fn closed(&self, detail: &'static str) -> Error {
        Error::Closed {
            broker: Arc::clone(&self.broker),
            detail,
        }
    }

    fn bad_frame(&self, reason: String) -> Error {
        Error::Frame {
            broker: Arc::clone(&self.broker),
            reason,
        }
    }
}

/// The sending half of a connection. Used in place by the task that owns it.
#[derive(Debug)]
pub struct FrameWriter {
    sink: WriteSide,
    broker: Arc<str>,
    /// What is still to be written, in order.
    pending: VecDeque<Bytes>,
    /// Bytes were written that the sink may still hold back.
    unflushed: bool,
}

impl FrameWriter {
    fn new(sink: WriteSide, broker: Arc<str>) -> Self {
        Self {
            sink,
            broker,
            pending: VecDeque::new(),
            unflushed: false,
        }
    }

    /// Address of the broker.
    pub fn broker(&self) -> &Arc<str> {
        &self.broker
    }

    /// Writes one frame made of `parts`, with its length prefix, by vectored writes.
    ///
    /// Cancel-safe: when the future is dropped half-way, the rest stays queued and is written first by the next call.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Frame`] if the parts are longer than a frame can be (2 GiB).
    pub async fn write(&mut self, parts: &[Bytes]) -> Result<(), Error> {
        self.enqueue(parts)?;
        self.flush().await
    }

    /// Queues one frame without writing it; [`FrameWriter::flush`] does. The caller bounds how much is queued.
    ///
    /// # Errors
    /// [`Error::Frame`] if the parts are longer than a frame can be.
    pub fn enqueue(&mut self, parts: &[Bytes]) -> Result<(), Error> {
        let length: usize = parts.iter().map(Bytes::len).sum();
        let length = i32::try_from(length).map_err(|_| Error::Frame {
            broker: Arc::clone(&self.broker),
            reason: format!("a request of {length} bytes is too long"),
        })?;
        self.pending
            .push_back(Bytes::copy_from_slice(&length.to_be_bytes()));
        self.pending
            .extend(parts.iter().filter(|part| !part.is_empty()).cloned());
        Ok(())
    }

    /// Whether queued bytes wait for [`FrameWriter::flush`].
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty() || self.unflushed
    }

    /// Writes what is queued. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Io`]. The connection cannot be used after an error.
    pub async fn flush(&mut self) -> Result<(), Error> {
        poll_fn(|context| self.poll_flush(context))
            .await
            .map_err(|error| Error::io(&self.broker, "write", error))
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_PER_WRITE];
            let mut count = 0;
            for (slice, part) in slices.iter_mut().zip(&self.pending) {
                *slice = IoSlice::new(part);
                count += 1;
            }
            let written =
                ready!(Pin::new(&mut self.sink).poll_write_vectored(context, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.drop_written(written);
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.sink).poll_flush(context))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn drop_written(&mut self, mut written: usize) {
        while let Some(part) = self.pending.front_mut() {
            if written < part.len() {
                part.advance(written);
                return;
            }
            written -= part.len();
            self.pending.pop_front();
        }
    }
}

/// Splits a plain connection into its halves.
pub(crate) fn split_plain(
    stream: TcpStream,
    broker: &Arc<str>,
    max_frame_bytes: usize,
) -> (FrameReader, FrameWriter) {
    let (read, write) = stream.into_split();
    halves(
        ReadSide::Plain(read),
        WriteSide::Plain(write),
        broker,
        max_frame_bytes,
    )
}

/// Splits a TLS connection into its halves.
pub(crate) fn split_tls(
    stream: TlsStream<TcpStream>,
    broker: &Arc<str>,
    max_frame_bytes: usize,
) -> (FrameReader, FrameWriter) {
    let (read, write) = tokio::io::split(stream);
    halves(
        ReadSide::Tls(read),
        WriteSide::Tls(write),
        broker,
        max_frame_bytes,
    )
}

fn halves(
    read: ReadSide,
    write: WriteSide,
    broker: &Arc<str>,
    max_frame_bytes: usize,
) -> (FrameReader, FrameWriter) {
    (
        FrameReader::new(read, Arc::clone(broker), max_frame_bytes),
        FrameWriter::new(write, Arc::clone(broker)),
    )
}

#[derive(Debug)]
enum ReadSide {
    Plain(OwnedReadHalf),
    Tls(ReadHalf<TlsStream<TcpStream>>),
}

impl AsyncRead for ReadSide {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(half) => Pin::new(half).poll_read(context, buffer),
            Self::Tls(half) => Pin::new(half).poll_read(context, buffer),
        }
    }
}

#[derive(Debug)]
enum WriteSide {
    Plain(OwnedWriteHalf),
    Tls(WriteHalf<TlsStream<TcpStream>>),
}

impl AsyncWrite for WriteSide {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(half) => Pin::new(half).poll_write(context, bytes),
            Self::Tls(half) => Pin::new(half).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(half) => Pin::new(half).poll_write_vectored(context, slices),
            Self::Tls(half) => Pin::new(half).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(half) => Pin::new(half).poll_flush(context),
            Self::Tls(half) => Pin::new(half).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(half) => Pin::new(half).poll_shutdown(context),
            Self::Tls(half) => Pin::new(half).poll_shutdown(context),
        }
    }
}
