//! One member's own view: two calls, and its page of metrics.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1::handshake;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use kv_server::pb::etcdserverpb as pb;
use multiraft::tls::{self, ClientTls};
use pb::cluster_client::ClusterClient;
use pb::maintenance_client::MaintenanceClient;
use tokio::time::timeout;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::failure::chain;
use crate::user::{User, log_in};

/// A page of metrics is some tens of kilobytes.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// What a member says.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) status: pb::StatusResponse,
    pub(super) members: Vec<pb::Member>,
    pub(super) figures: Figures,
}

/// From the page of metrics; a server that does not show them leaves them out.
#[derive(Default)]
pub(super) struct Figures {
    /// Seconds that a sync of the log took in the last minute: half of them less, and 99 in 100.
    pub(super) fsync_p50: Option<f64>,
    pub(super) fsync_p99: Option<f64>,
    /// The version of flotilla.
    pub(super) version: Option<String>,
}

impl Answer {
    pub(super) fn member(&self) -> u64 {
        self.status.header.map_or(0, |header| header.member_id)
    }

    pub(super) fn cluster(&self) -> u64 {
        self.status.header.map_or(0, |header| header.cluster_id)
    }
}

/// How members are asked.
#[derive(Clone)]
pub(super) struct Access {
    pub(super) tls: Option<ClientTls>,
    pub(super) user: Option<User>,
    /// For one answer.
    pub(super) patience: Duration,
}

/// Asks who serves at a URL.
pub(super) async fn ask(url: &str, access: &Access) -> Result<Answer, String> {
    let patience = access.patience;
    let answer = timeout(patience, call(url, access)).await;
    answer
        .unwrap_or_else(|_| Err(format!("no answer in {} s", patience.as_secs())))
        .map_err(|error| format!("{url}: {error}"))
}

/// Asks a member at the first of its URLs that answers.
pub(super) async fn ask_first(
    id: u64,
    urls: Vec<String>,
    access: &Access,
) -> Result<(String, Answer), String> {
    let mut errors = Vec::new();
    for url in urls {
        match ask(&url, access).await {
            Ok(answer) if answer.member() == id => return Ok((url, answer)),
            Ok(answer) => errors.push(format!("{url}: member {:x} answers", answer.member())),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() {
        return Err("it has not told yet where it serves clients".to_owned());
    }
    Err(errors.join("; "))
}

async fn call(url: &str, access: &Access) -> Result<Answer, String> {
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| chain(&error))?;
    let tls = access.tls.as_ref();
    let channel = tls::connect(&endpoint, tls).await;
    let channel = channel.map_err(|error| chain(&error))?;
    let token = log_in(&channel, access.user.as_ref()).await;
    let token = token.map_err(|status| status.message().to_owned())?;
    let status = MaintenanceClient::with_interceptor(channel.clone(), token.clone())
        .status(pb::StatusRequest {})
        .await
        .map_err(|status| why(&status))?
        .into_inner();
    // Also without a leader.
    let request = pb::MemberListRequest {
        linearizable: false,
    };
    let members = match ClusterClient::with_interceptor(channel, token)
        .member_list(request)
        .await
    {
        Ok(list) => list.into_inner().members,
        // Learners do not say who the others are; whoever votes does.
        Err(_) if status.is_learner => Vec::new(),
        Err(status) => return Err(why(&status)),
    };
    let figures = page(url, tls).await.as_deref().map(figures);
    Ok(Answer {
        status,
        members,
        figures: figures.unwrap_or_default(),
    })
}

/// What a member says instead of an answer; what is none says nothing.
fn why(status: &Status) -> String {
    if status.code() == Code::Unimplemented {
        return "this is not where clients are served, such as a peer URL; name a client URL"
            .to_owned();
    }
    match status.message() {
        "" => format!("it refuses with {:?} and gives no reason", status.code()),
        text => text.to_owned(),
    }
}

/// The page of metrics. A server without one is healthy all the same.
async fn page(url: &str, tls: Option<&ClientTls>) -> Option<String> {
    let uri = format!("{url}/metrics").parse().ok()?;
    let stream = tls::open(&uri, tls).await.ok()?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.ok()?;
    // It ends with the sender.
    tokio::spawn(connection);
    let request = Request::get(uri.path())
        .header(HOST, uri.authority()?.as_str())
        .body(Empty::<Bytes>::new())
        .ok()?;
    let page = sender.send_request(request).await.ok()?;
    let body = Limited::new(page.into_body(), PAGE_BYTES_MAX);
    let page = body.collect().await.ok()?.to_bytes();
    String::from_utf8(page.to_vec()).ok()
}

fn figures(page: &str) -> Figures {
    let quantile = |quantile: &str| {
        let name = format!("flotilla_disk_wal_fsync_recent_seconds{{quantile=\"{quantile}\"}} ");
        page.lines()
            .find_map(|line| line.strip_prefix(&name)?.trim().parse().ok())
    };
    let version = page
        .lines()
        .find_map(|line| line.strip_prefix("flotilla_build_info{version=\""))
        .and_then(|rest| rest.split('"').next());
    Figures {
        fsync_p50: quantile("0.5"),
        fsync_p99: quantile("0.99"),
        version: version.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_where_they_are() {
        let page = "# HELP x\nflotilla_build_info{version=\"1.2.3\"} 1\n\
                    flotilla_disk_wal_fsync_recent_seconds{quantile=\"0.5\"} 0.00012\n\
                    flotilla_disk_wal_fsync_recent_seconds{quantile=\"0.99\"} 0.0043\n";
        let found = figures(page);
        assert_eq!(found.version.as_deref(), Some("1.2.3"));
        assert_eq!(
            (found.fsync_p50, found.fsync_p99),
            (Some(0.00012), Some(0.0043))
        );
        let found = figures("process_open_fds 9\n");
        assert_eq!((found.version, found.fsync_p50), (None, None));
    }
}
