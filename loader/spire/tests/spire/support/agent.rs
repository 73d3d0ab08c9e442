//! An agent: serves the Workload API on a unix socket, as told by the test. Its messages and its service are generated from
//! the official description apart from those of the program.

use std::{fs, path::PathBuf, pin::Pin};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::UnixListener,
    runtime::{Builder, Runtime},
    sync::watch,
};
use tokio_stream::{Stream, StreamExt, wrappers::WatchStream};
use tonic::{Request, Response, Status};

use super::workload::{
    X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
    spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
};

type Answer<T> = Result<T, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Answer<T>> + Send>>;

/// What the agent says to whoever asks, now and when it changes.
#[derive(Clone)]
struct Service {
    svids: watch::Receiver<Option<Answer<X509svidResponse>>>,
    bundles: watch::Receiver<Option<Answer<X509BundlesResponse>>>,
}

/// A running agent; gone, with all its connections, when this is dropped.
pub(crate) struct Agent {
    svids: watch::Sender<Option<Answer<X509svidResponse>>>,
    bundles: watch::Sender<Option<Answer<X509BundlesResponse>>>,
    socket: PathBuf,
    _runtime: Runtime,
}

impl Agent {
    /// One that has nothing to say yet.
    pub(crate) fn start(socket: PathBuf) -> Self {
        let (svids, svids_receiver) = watch::channel(None);
        let (bundles, bundles_receiver) = watch::channel(None);
        let service = Service {
            svids: svids_receiver,
            bundles: bundles_receiver,
        };
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(async { UnixListener::bind(&socket).unwrap() });
        runtime.spawn(serve(listener, SpiffeWorkloadApiServer::new(service)));
        Self {
            svids,
            bundles,
            socket,
            _runtime: runtime,
        }
    }

    pub(crate) fn say(&self, message: X509svidResponse) {
        self.svids.send_replace(Some(Ok(message)));
    }

    pub(crate) fn say_bundles(&self, message: X509BundlesResponse) {
        self.bundles.send_replace(Some(Ok(message)));
    }

    /// As SPIRE does to a process that no registration entry fits.
    pub(crate) fn deny(&self) {
        let status = Status::permission_denied("no identity issued");
        self.svids.send_replace(Some(Err(status)));
    }

    /// As an agent without this part of the service does.
    pub(crate) fn has_no_bundle_stream(&self) {
        let status = Status::unimplemented("no such stream");
        self.bundles.send_replace(Some(Err(status)));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}

async fn serve(listener: UnixListener, service: SpiffeWorkloadApiServer<Service>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let http = auto::Builder::new(TokioExecutor::new()).http2_only();
            // Its end is nobody's business but the caller's.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = Answers<X509svidResponse>;
    type FetchX509BundlesStream = Answers<X509BundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Answer<Response<Self::FetchX509SVIDStream>> {
        answers(&request, &self.svids)
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Answer<Response<Self::FetchX509BundlesStream>> {
        answers(&request, &self.bundles)
    }
}

fn answers<R, T: Clone + Send + Sync + 'static>(
    request: &Request<R>,
    say: &watch::Receiver<Option<Answer<T>>>,
) -> Answer<Response<Answers<T>>> {
    // "The static metadata key `workload.spiffe.io` with a value of `true`" (Workload Endpoint, section 3).
    let mark = request.metadata().get("workload.spiffe.io");
    if mark.is_none_or(|mark| mark != "true") {
        return Err(Status::invalid_argument("security header missing"));
    }
    let stream = WatchStream::new(say.clone()).filter_map(|answer| answer);
    Ok(Response::new(Box::pin(stream)))
}
