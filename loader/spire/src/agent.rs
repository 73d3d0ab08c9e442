//! The conversation with the agent: both streams are kept open, for as long as the agent lives; then it is tried again.
//!
//! The SPIFFE Workload API is gRPC over a unix socket
//! (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md>). The agent knows its caller by the
//! process at the other end of the socket; there is nothing to prove here. A message is handed on as it is.
//!
//! On tonic, with code that is generated from the official description. The crate `spiffe` (0.19) would do the same but drops
//! revocation lists, and refuses a message as a whole for one bad SVID in it.

use std::{
    error::Error,
    future::{self, Future},
    io,
    path::{Path, PathBuf},
    sync::mpsc::Sender,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{
    net::UnixStream,
    runtime::{Builder, Runtime},
    time::sleep,
};
use tonic::{
    Code, Request, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use crate::{
    line,
    workload::{
        X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
        spiffe_workload_api_client::SpiffeWorkloadApiClient,
    },
};

/// What comes from the agent.
pub enum Event {
    /// All X.509-SVIDs that it has for this program.
    Svids(X509svidResponse),
    /// All bundles that it has for this program.
    Bundles(X509BundlesResponse),
    /// The conversation has ended, or did not begin; why. It is tried again.
    Lost(String),
}

/// A conversation that begins again by itself; ends when this is dropped.
pub struct Agent {
    _runtime: Runtime,
}

impl Agent {
    /// Begins to talk to the agent behind `socket`; `events` gets what it says.
    ///
    /// # Errors
    /// The system has no thread for it. That there is no agent is an event.
    pub fn talk(socket: &Path, events: Sender<Event>) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_io()
            .enable_time()
            .build()?;
        runtime.spawn(again_and_again(socket.to_owned(), events));
        Ok(Self { _runtime: runtime })
    }
}

async fn again_and_again(socket: PathBuf, events: Sender<Event>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let mut heard = false;
        let why = match connect(&socket).await {
            Ok(channel) => {
                converse(channel, |event| {
                    heard = true;
                    // Nobody listens any more: this task is about to be dropped.
                    let _ = events.send(event);
                })
                .await
            }
            Err(error) => chain(&error),
        };
        let lost = format!("the agent at {}: {}", socket.display(), line(&why));
        if events.send(Event::Lost(lost)).is_err() {
            return;
        }
        if heard {
            pause = FIRST_PAUSE;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn connect(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let connector = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // gRPC wants an address in its requests; the connection is made by the connector.
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
}

/// Both streams, until one of them ends; why it did.
async fn converse(channel: Channel, mut hear: impl FnMut(Event)) -> String {
    let (send, mut receive) = tokio::sync::mpsc::channel(1);
    let client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(LARGEST);
    let (mut one, mut other) = (client.clone(), client);
    let svids = follow(
        async move { one.fetch_x509svid(request(X509svidRequest {})).await },
        Event::Svids,
        send.clone(),
    );
    let bundles = async {
        let bundles = follow(
            async move {
                other
                    .fetch_x509_bundles(request(X509BundlesRequest {}))
                    .await
            },
            Event::Bundles,
            send,
        );
        match bundles.await {
            // An SVID comes with all bundles that count; this stream tells of changes earlier.
            Some(status) if status.code() == Code::Unimplemented => future::pending().await,
            end => end,
        }
    };
    let streams = async {
        tokio::select! { end = svids => end, end = bundles => end }
    };
    tokio::pin!(streams);
    loop {
        tokio::select! {
            biased;
            Some(event) = receive.recv() => hear(event),
            end = &mut streams => {
                while let Ok(event) = receive.try_recv() {
                    hear(event);
                }
                return end.as_ref().map_or_else(|| "it has ended the stream".to_owned(), reason);
            }
        }
    }
}

/// Hands on what a stream brings; the status that it ends with, if it has one.
async fn follow<T>(
    call: impl Future<Output = Result<tonic::Response<Streaming<T>>, Status>>,
    event: impl Fn(T) -> Event,
    to: tokio::sync::mpsc::Sender<Event>,
) -> Option<Status> {
    let mut stream = match call.await {
        Ok(response) => response.into_inner(),
        Err(status) => return Some(status),
    };
    loop {
        match stream.message().await {
            Ok(Some(message)) => to.send(event(message)).await.ok()?,
            Ok(None) => return None,
            Err(status) => return Some(status),
        }
    }
}

/// With the mark that the Workload API demands of its callers, so that nobody is made to call it by mistake.
fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let yes = MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", yes);
    request
}

fn reason(status: &Status) -> String {
    match status.code() {
        Code::PermissionDenied => format!(
            "it has no identity for this program ({}): no registration entry fits \
             underseal-spire's process",
            status.message()
        ),
        // Nothing but the connection's end as tonic puts it; the cause says more.
        Code::Unknown | Code::Unavailable | Code::Internal => chain(status),
        code => format!("{code}: {}", status.message()),
    }
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let this = error.to_string();
        if !text.contains(&this) {
            if !text.is_empty() {
                text += ": ";
            }
            text += &this;
        }
        next = error.source();
    }
    text
}

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Of one message, bytes: some thousand SVIDs.
const LARGEST: usize = 16 << 20;
