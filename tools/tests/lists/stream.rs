//! RangeStream: its parts, what is refused, and that all of it is as of one revision.

use prost::Message;
use tonic::Code;

use super::*;

async fn parts(kv: &mut KvClient<Channel>, request: pb::RangeRequest) -> Vec<pb::RangeResponse> {
    let mut stream = kv.range_stream(request).await.unwrap().into_inner();
    let mut parts = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        parts.push(part.range_response.expect("a part has an answer"));
    }
    parts
}

/// As protobuf merges messages: lists are joined, the last number counts.
fn merged(parts: &[pb::RangeResponse]) -> pb::RangeResponse {
    let bytes: Vec<u8> = parts.iter().flat_map(Message::encode_to_vec).collect();
    pb::RangeResponse::decode(&bytes[..]).unwrap()
}

#[test]
fn merged_parts_are_the_unary_answer_and_only_the_last_has_a_header() {
    with_server(async |server| {
        let mut kv = client(server).await;
        let revision = fill(&mut kv, 1_500, |n| [0, 3, 900, 5_000][n % 4]).await;
        let gone = pb::DeleteRangeRequest {
            key: key(100).into(),
            range_end: key(160).into(),
            ..Default::default()
        };
        kv.delete_range(gone).await.unwrap();
        let small = pb::RangeRequest { limit: 25, ..all() };
        let ordered = pb::RangeRequest {
            sort_order: pb::range_request::SortOrder::Ascend.into(),
            ..all()
        };
        for request in [
            all(),
            small.clone(),
            ordered,
            pb::RangeRequest { limit: 10, ..all() },
            pb::RangeRequest {
                limit: 1_440,
                ..all()
            },
            pb::RangeRequest {
                limit: 1_439,
                ..all()
            },
            pb::RangeRequest {
                limit: 5_000,
                ..all()
            },
            pb::RangeRequest {
                keys_only: true,
                ..all()
            },
            pb::RangeRequest {
                keys_only: true,
                revision,
                ..all()
            },
            pb::RangeRequest {
                count_only: true,
                ..all()
            },
            pb::RangeRequest {
                count_only: true,
                revision,
                ..small.clone()
            },
            pb::RangeRequest {
                serializable: true,
                revision: revision - 3,
                ..all()
            },
            pb::RangeRequest { revision, ..small },
            pb::RangeRequest {
                range_end: "".into(),
                key: key(7).into(),
                ..all()
            },
            pb::RangeRequest {
                range_end: "".into(),
                key: "none".into(),
                ..all()
            },
            pb::RangeRequest {
                range_end: "k/".into(),
                ..all()
            },
            pb::RangeRequest {
                key: [0].to_vec().into(),
                range_end: [0].to_vec().into(),
                ..all()
            },
        ] {
            let unary = kv.range(request.clone()).await.unwrap().into_inner();
            let parts = parts(&mut kv, request.clone()).await;
            assert_eq!(merged(&parts), unary, "{request:?}");
            let (last, first) = parts.split_last().unwrap();
            assert!(last.header.is_some(), "{request:?}");
            for part in first {
                let bare = (part.header.is_none(), part.more, part.count);
                assert_eq!(bare, (true, false, 0), "{request:?}");
            }
            let one = request.count_only || unary.kvs.len() <= 10;
            assert_eq!(parts.len() == 1, one, "{request:?}: {} parts", parts.len());
        }
        // Twice as many keys each time, until a part has half of the longest request.
        let lengths: Vec<usize> = parts(&mut kv, all())
            .await
            .iter()
            .map(|part| part.kvs.len())
            .collect();
        assert_eq!(lengths, [10, 20, 40, 80, 160, 320, 640, 170]);
    });
}

#[test]
fn parts_shrink_when_values_grow_and_stay_within_a_bound() {
    with_server(async |server| {
        let mut kv = client(server).await;
        // Long ones follow many short ones.
        fill(&mut kv, 3_000, |n| if n < 2_560 { 10 } else { 10_000 }).await;
        let parts = parts(&mut kv, all()).await;
        assert_eq!(merged(&parts), kv.range(all()).await.unwrap().into_inner());
        for part in &parts {
            let bytes = part.encoded_len();
            assert!(
                bytes < (3 << 20) + 20_000 + 64 * part.kvs.len(),
                "{bytes} bytes"
            );
        }
        assert!(parts.iter().any(|part| part.encoded_len() > 3 << 19));
    });
}

#[test]
fn what_cannot_be_streamed_is_refused_in_etcds_words() {
    with_server(async |server| {
        let mut kv = client(server).await;
        let revision = fill(&mut kv, 300, |_| 1).await;
        let compact = pb::CompactionRequest {
            revision,
            physical: false,
        };
        kv.compact(compact).await.unwrap();
        let by_value = pb::range_request::SortTarget::Value.into();
        let ascend = pb::range_request::SortOrder::Ascend.into();
        let descend = pb::range_request::SortOrder::Descend.into();
        let orders = "RangeStream does not support custom sort orders";
        let filters = "RangeStream does not support revision filters";
        for (request, code, text) in [
            (
                pb::RangeRequest {
                    key: "".into(),
                    ..all()
                },
                Code::InvalidArgument,
                "etcdserver: key is not provided",
            ),
            (
                pb::RangeRequest {
                    sort_order: 9,
                    ..all()
                },
                Code::InvalidArgument,
                "etcdserver: invalid sort option",
            ),
            (
                pb::RangeRequest {
                    sort_order: descend,
                    ..all()
                },
                Code::Unimplemented,
                orders,
            ),
            (
                pb::RangeRequest {
                    sort_order: ascend,
                    sort_target: by_value,
                    min_mod_revision: 1,
                    ..all()
                },
                Code::Unimplemented,
                orders,
            ),
            (
                pb::RangeRequest {
                    min_mod_revision: 1,
                    ..all()
                },
                Code::Unimplemented,
                filters,
            ),
            (
                pb::RangeRequest {
                    max_mod_revision: 1,
                    ..all()
                },
                Code::Unimplemented,
                filters,
            ),
            (
                pb::RangeRequest {
                    min_create_revision: 1,
                    ..all()
                },
                Code::Unimplemented,
                filters,
            ),
            (
                pb::RangeRequest {
                    max_create_revision: 1,
                    ..all()
                },
                Code::Unimplemented,
                filters,
            ),
            (
                pb::RangeRequest {
                    revision: revision - 1,
                    ..all()
                },
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
            ),
            (
                pb::RangeRequest {
                    revision: revision + 1,
                    ..all()
                },
                Code::OutOfRange,
                "etcdserver: mvcc: required revision is a future revision",
            ),
        ] {
            let refused = kv.range_stream(request.clone()).await.unwrap_err();
            assert_eq!(
                (refused.code(), refused.message()),
                (code, text),
                "{request:?}"
            );
        }
        // A target without an order is none.
        let request = pb::RangeRequest {
            sort_target: by_value,
            ..all()
        };
        let parts = parts(&mut kv, request).await;
        assert_eq!(merged(&parts), kv.range(all()).await.unwrap().into_inner());
    });
}

#[test]
fn what_others_write_while_a_stream_is_read_is_not_in_it() {
    with_server(async |server| {
        let (mut kv, mut other) = (client(server).await, client(server).await);
        fill(&mut kv, 16_000, |_| 1_024).await;
        let before = kv.range(all()).await.unwrap().into_inner();
        let mut stream = kv.range_stream(all()).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().unwrap();
        // Far more is to come than windows hold.
        let half = pb::DeleteRangeRequest {
            key: key(0).into(),
            range_end: key(8_000).into(),
            ..Default::default()
        };
        other.delete_range(half).await.unwrap();
        fill(&mut other, 300, |_| 7).await;
        let put = pb::PutRequest {
            key: key(15_999).into(),
            value: "new".into(),
            ..Default::default()
        };
        other.put(put).await.unwrap();
        let mut parts = vec![first.range_response.unwrap()];
        while let Some(part) = stream.message().await.unwrap() {
            parts.push(part.range_response.unwrap());
        }
        let found = merged(&parts);
        assert_eq!(
            found.header.unwrap().revision,
            before.header.unwrap().revision
        );
        assert_eq!(found, before);
    });
}

#[test]
fn history_that_is_compacted_under_a_stream_ends_it() {
    with_server(async |server| {
        let (mut kv, mut other) = (client(server).await, client(server).await);
        let revision = fill(&mut kv, 16_000, |_| 1_024).await;
        let mut stream = kv.range_stream(all()).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        let written = fill(&mut other, 1, |_| 1).await;
        assert_eq!(written, revision + 1);
        let compact = pb::CompactionRequest {
            revision: written,
            physical: true,
        };
        other.compact(compact).await.unwrap();
        let mut keys = 10;
        let end = loop {
            match stream.message().await {
                Ok(Some(part)) => keys += part.range_response.unwrap().kvs.len(),
                Ok(None) => panic!("the stream ended as if it were whole, after {keys} keys"),
                Err(status) => break status,
            }
        };
        assert_eq!(end.code(), Code::OutOfRange);
        assert_eq!(
            end.message(),
            "etcdserver: mvcc: required revision has been compacted"
        );
        assert!(keys < 16_000, "{keys}");
    });
}
