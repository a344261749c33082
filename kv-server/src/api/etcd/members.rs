//! Changes of the members. The leader judges and does them, one at a time, whichever member was asked; new peer URLs are a
//! command like any other.

use std::time::SystemTime;

use bytes::Bytes;
use prost::Message;
use rand::TryRng;
use rand::rngs::SysRng;
use tokio::time::timeout;
use tonic::Code;

use super::{EtcdApi, Replica, View, host_error};
use crate::ApiError;
use crate::api::member_id;
use crate::pb::command::{UpdateMember, command};
use crate::pb::etcdserverpb as pb;
use crate::pb::peer::{AddMember, MemberAnswer, MemberCall, member_call::Op};
use crate::reply;

impl<R: Replica, V: View> EtcdApi<R, V> {
    pub(super) async fn add_member(
        &self,
        request: pb::MemberAddRequest,
    ) -> Result<pb::MemberAddResponse, ApiError> {
        let peer_urls = check_urls(request.peer_ur_ls)?;
        let id = new_id(&peer_urls);
        let is_learner = request.is_learner;
        let add = AddMember {
            id,
            peer_urls,
            is_learner,
        };
        let members = self.change_members(Op::Add(add)).await?;
        Ok(pb::MemberAddResponse {
            header: self.header_at(0),
            member: members.iter().find(|member| member.id == id).cloned(),
            members,
        })
    }

    pub(super) async fn update_member(
        &self,
        request: pb::MemberUpdateRequest,
    ) -> Result<pb::MemberUpdateResponse, ApiError> {
        let (id, peer_urls) = (request.id, check_urls(request.peer_ur_ls)?);
        self.linearizable().await?;
        let members = self.view.members();
        if !members.iter().any(|member| member.id == id) {
            return Err(ApiError::MemberNotFound);
        }
        // Members that have not published anything yet are known here, and not to who applies it.
        let mut others = members.iter().filter(|member| member.id != id);
        if others.any(|other| other.peer_ur_ls.iter().any(|url| peer_urls.contains(url))) {
            return Err(ApiError::PeerUrlExists);
        }
        let update = UpdateMember { id, peer_urls };
        self.propose(command::Op::UpdateMember(update)).await?;
        Ok(pb::MemberUpdateResponse {
            header: self.header_at(0),
            members: self.view.members(),
        })
    }

    /// Asks whoever leads for a change. All members as they are then.
    pub(super) async fn change_members(&self, op: Op) -> Result<Vec<pb::Member>, ApiError> {
        if !self.options.changes_members {
            let text = "flotilla: members are changed through the default keyspace".to_owned();
            return Err(ApiError::Other(Code::FailedPrecondition, text));
        }
        let request = random()?.max(1);
        let call = MemberCall {
            request,
            op: Some(op),
        };
        let (sender, receiver) = reply::channel();
        self.replica.call_leader(
            call.encode_to_vec().into(),
            Box::new(move |answer| sender.send(answer)),
        );
        let answer: Bytes = match timeout(self.options.request_timeout(), receiver).await {
            Ok(Ok(answer)) => answer.map_err(|error| host_error(&error))?,
            Ok(Err(_)) => return Err(ApiError::Stopped),
            Err(_) => return Err(ApiError::Timeout),
        };
        let answer = MemberAnswer::decode(answer).map_err(|error| {
            let text = format!("flotilla: the leader's answer cannot be read: {error}");
            ApiError::Other(Code::Internal, text)
        })?;
        match answer.error {
            Some(error) => {
                let code = i32::try_from(error.code).map_or(Code::Unknown, Code::from_i32);
                Err(ApiError::Other(code, error.text))
            }
            None => Ok(answer.members),
        }
    }
}

/// Peer URLs as they are kept: sorted, each once.
fn check_urls(mut urls: Vec<String>) -> Result<Vec<String>, ApiError> {
    if urls.is_empty() {
        return Err(ApiError::BadMemberUrls);
    }
    for url in &urls {
        if url.starts_with("https://") {
            return Err(ApiError::NotImplemented("TLS between members"));
        }
        let address = url.strip_prefix("http://");
        let address = address.and_then(|address| address.rsplit_once(':'));
        let is_fine = address.is_some_and(|(host, port)| {
            !host.is_empty() && !host.contains(['/', ' ', ',', '@']) && port.parse::<u16>().is_ok()
        });
        if !is_fine {
            return Err(ApiError::BadMemberUrls);
        }
    }
    urls.sort_unstable();
    urls.dedup();
    Ok(urls)
}

/// As etcd makes them: from the URLs and the time, so that a member that comes back is another one.
#[expect(
    clippy::disallowed_methods,
    reason = "drawn before the proposal, as every id"
)]
fn new_id(peer_urls: &[String]) -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    member_id(peer_urls, &seconds.to_string())
}

fn random() -> Result<u64, ApiError> {
    SysRng.try_next_u64().map_err(|error| {
        let text = format!("flotilla: no randomness for a request: {error}");
        ApiError::Other(Code::Internal, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_nobody_can_call_are_refused() {
        let check = |urls: &[&str]| check_urls(urls.iter().map(|url| (*url).to_owned()).collect());
        let sorted = ["http://a:1".to_owned(), "http://b:2".to_owned()];
        assert_eq!(
            check(&["http://b:2", "http://a:1", "http://b:2"]).unwrap(),
            sorted
        );
        assert!(check(&["http://[::1]:2380"]).is_ok());
        for bad in [
            "",
            "a:1",
            "http://a",
            "http://:1",
            "http://a:x",
            "http://a:1/x",
            "ftp://a:1",
        ] {
            assert_eq!(check(&[bad]), Err(ApiError::BadMemberUrls), "{bad}");
        }
        assert_eq!(check(&[]), Err(ApiError::BadMemberUrls));
        assert!(matches!(
            check(&["https://a:1"]),
            Err(ApiError::NotImplemented(_))
        ));
    }
}
