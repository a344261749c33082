//! etcd's client errors: the text is the contract, because clients map the exact message.
//!
//! Source: the error table of etcd v3's `rpctypes`, with the codes and texts that clientv3 matches.

use std::fmt;

use tonic::{Code, Status};

macro_rules! api_errors {
    ($($(#[$doc:meta])* $name:ident => $code:ident, $text:literal;)*) => {
        /// An error that a client sees.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum ApiError {
            $($(#[$doc])* $name,)*
            /// A feature of etcd that this version does not have yet; the text says which.
            NotImplemented(&'static str),
            /// Anything else: code and text.
            Other(Code, String),
        }

        impl ApiError {
            /// The gRPC code.
            #[must_use]
            pub fn code(&self) -> Code {
                match self {
                    $(Self::$name => Code::$code,)*
                    Self::NotImplemented(_) => Code::Unimplemented,
                    Self::Other(code, _) => *code,
                }
            }
        }

        impl fmt::Display for ApiError {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name => f.write_str(concat!("etcdserver: ", $text)),)*
                    Self::NotImplemented(what) => {
                        write!(f, "flotilla: {what} is not implemented in this version")
                    }
                    Self::Other(_, text) => f.write_str(text),
                }
            }
        }
    };
}

api_errors! {
    /// A request without a key.
    EmptyKey => InvalidArgument, "key is not provided";
    /// `ignore_value` or `ignore_lease` on a missing key; an empty operation in a txn.
    KeyNotFound => InvalidArgument, "key not found";
    /// `ignore_value` together with a value.
    ValueProvided => InvalidArgument, "value is provided";
    /// `ignore_lease` together with a lease.
    LeaseProvided => InvalidArgument, "lease is provided";
    /// More operations than `--max-txn-ops`.
    TooManyOps => InvalidArgument, "too many operations in txn request";
    /// One branch of a txn changes a key twice.
    DuplicateKey => InvalidArgument, "duplicate key given in txn request";
    /// The target of a downgrade that is no version.
    WrongDowngradeVersionFormat => InvalidArgument, "wrong downgrade target version format";
    /// The target of a downgrade that cannot be.
    InvalidDowngradeTargetVersion => InvalidArgument, "invalid downgrade target version";
    /// A sort order or target that does not exist.
    InvalidSortOption => InvalidArgument, "invalid sort option";
    /// Above `--max-request-bytes`.
    RequestTooLarge => InvalidArgument, "request is too large";
    /// A revision below the compaction floor.
    Compacted => OutOfRange, "mvcc: required revision has been compacted";
    /// A revision that does not exist yet.
    FutureRevision => OutOfRange, "mvcc: required revision is a future revision";
    /// A TTL above 9,000,000,000 seconds.
    LeaseTtlTooLarge => OutOfRange, "too large lease TTL";
    /// The disk, or the quota, is full.
    NoSpace => ResourceExhausted, "mvcc: database space exceeded";
    /// A queue is at its bound.
    TooManyRequests => ResourceExhausted, "too many requests";
    /// No such lease.
    LeaseNotFound => NotFound, "requested lease not found";
    /// No such member.
    MemberNotFound => NotFound, "member not found";
    /// Peer URLs of a member that are none, or that no member could be reached by.
    BadMemberUrls => InvalidArgument, "given member URLs are invalid";
    /// A member under an id that is in use.
    MemberExists => FailedPrecondition, "member ID already exist";
    /// A peer URL is another member's.
    PeerUrlExists => FailedPrecondition, "Peer URLs already exists";
    /// Of the voters that there would be, too few have ever started.
    NotEnoughStarted => FailedPrecondition, "re-configuration failed due to not enough started members";
    /// Who is to be promoted votes already.
    NotLearner => FailedPrecondition, "can only promote a learner member";
    /// Who is to be promoted lacks too much of the log.
    LearnerNotReady => FailedPrecondition, "can only promote a learner member which is in sync with leader";
    /// There may be no more learners.
    TooManyLearners => FailedPrecondition, "too many learner members in cluster";
    /// Members that are needed to decide are not connected, or not for long enough.
    Unhealthy => Unavailable, "unhealthy cluster";
    /// A grant under an id that is in use.
    LeaseExists => FailedPrecondition, "lease already exists";
    /// Only the leader can do it.
    NotLeader => FailedPrecondition, "not leader";
    /// Who is to lead is no voter.
    BadLeaderTransferee => FailedPrecondition, "bad leader transferee";
    /// Nothing to cancel.
    NoInflightDowngrade => FailedPrecondition, "no inflight downgrade job";
    /// An action that does not exist.
    UnknownMethod => Unknown, "unknown method";
    /// There is no leader.
    NoLeader => Unavailable, "no leader";
    /// The leader moved while a read waited.
    LeaderChanged => Unavailable, "leader changed";
    /// The server is stopping.
    Stopped => Unavailable, "server stopped";
    /// No answer in time.
    Timeout => Unavailable, "request timed out";
    /// No answer in time, and the outcome of the write is unknown.
    TimeoutDueToLeaderFail => Unavailable, "request timed out, possibly due to previous leader failure";
    /// Who is to lead did not in time.
    TimeoutLeaderTransfer => Unavailable, "request timed out, leader transfer took too long";
    /// The local state did not reach the index of a read in time.
    TimeoutWaitAppliedIndex => Unavailable, "request timed out, waiting for the applied index took too long";
    /// Damage was found.
    Corrupt => DataLoss, "corrupt cluster";
    /// Authentication cannot be enabled without root.
    RootUserNotExist => FailedPrecondition, "root user does not exist";
    /// Authentication cannot be enabled by a root without that role.
    RootRoleNotExist => FailedPrecondition, "root user does not have root role";
    /// A user under a name that is in use.
    UserAlreadyExists => FailedPrecondition, "user name already exists";
    /// A user without a name; a call of nobody, while authentication is enabled.
    UserEmpty => InvalidArgument, "user name is empty";
    /// No such user.
    UserNotFound => FailedPrecondition, "user name not found";
    /// A role under a name that is in use.
    RoleAlreadyExists => FailedPrecondition, "role name already exists";
    /// No such role.
    RoleNotFound => FailedPrecondition, "role name not found";
    /// A role without a name.
    RoleEmpty => InvalidArgument, "role name is empty";
    /// No such user, or another password.
    AuthFailed => InvalidArgument, "authentication failed, invalid user ID or password";
    /// A grant without a permission.
    PermissionNotGiven => InvalidArgument, "permission not given";
    /// The user may not do that.
    PermissionDenied => PermissionDenied, "permission denied";
    /// The user does not hold the role.
    RoleNotGranted => FailedPrecondition, "role is not granted to the user";
    /// The role does not have the permission.
    PermissionNotGranted => FailedPrecondition, "permission is not granted to the role";
    /// A login while no call needs one.
    AuthNotEnabled => FailedPrecondition, "authentication is not enabled";
    /// A token that nobody knows, or no more; clients log in again.
    InvalidAuthToken => Unauthenticated, "invalid auth token";
    /// What would leave nobody to manage users, and a range that is none.
    InvalidAuthManagement => InvalidArgument, "invalid auth management";
    /// Users or roles changed since the caller was known; clients log in again.
    AuthOldRevision => InvalidArgument, "revision of auth store is old";
    /// A learner serves only serializable ranges, status and snapshots.
    NotSupportedForLearner => FailedPrecondition, "rpc not supported for learner";
}

impl std::error::Error for ApiError {}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// clientv3 maps the exact text; a changed one is a client that no longer retries, or retries what it must not.
    #[test]
    fn codes_and_texts_equal_etcd() {
        use ApiError as E;
        let table = [
            (E::EmptyKey, 3, "key is not provided"),
            (E::KeyNotFound, 3, "key not found"),
            (E::ValueProvided, 3, "value is provided"),
            (E::LeaseProvided, 3, "lease is provided"),
            (E::TooManyOps, 3, "too many operations in txn request"),
            (E::DuplicateKey, 3, "duplicate key given in txn request"),
            (E::InvalidSortOption, 3, "invalid sort option"),
            (E::RequestTooLarge, 3, "request is too large"),
            (
                E::Compacted,
                11,
                "mvcc: required revision has been compacted",
            ),
            (
                E::FutureRevision,
                11,
                "mvcc: required revision is a future revision",
            ),
            (E::LeaseTtlTooLarge, 11, "too large lease TTL"),
            (E::NoSpace, 8, "mvcc: database space exceeded"),
            (E::TooManyRequests, 8, "too many requests"),
            (E::LeaseNotFound, 5, "requested lease not found"),
            (E::MemberNotFound, 5, "member not found"),
            (E::BadMemberUrls, 3, "given member URLs are invalid"),
            (E::MemberExists, 9, "member ID already exist"),
            (E::PeerUrlExists, 9, "Peer URLs already exists"),
            (
                E::NotEnoughStarted,
                9,
                "re-configuration failed due to not enough started members",
            ),
            (E::NotLearner, 9, "can only promote a learner member"),
            (
                E::LearnerNotReady,
                9,
                "can only promote a learner member which is in sync with leader",
            ),
            (E::TooManyLearners, 9, "too many learner members in cluster"),
            (E::Unhealthy, 14, "unhealthy cluster"),
            (E::LeaseExists, 9, "lease already exists"),
            (E::NotLeader, 9, "not leader"),
            (E::BadLeaderTransferee, 9, "bad leader transferee"),
            (
                E::TimeoutLeaderTransfer,
                14,
                "request timed out, leader transfer took too long",
            ),
            (
                E::NotSupportedForLearner,
                9,
                "rpc not supported for learner",
            ),
            (E::NoLeader, 14, "no leader"),
            (E::LeaderChanged, 14, "leader changed"),
            (E::Stopped, 14, "server stopped"),
            (E::Timeout, 14, "request timed out"),
            (
                E::TimeoutDueToLeaderFail,
                14,
                "request timed out, possibly due to previous leader failure",
            ),
            (
                E::TimeoutWaitAppliedIndex,
                14,
                "request timed out, waiting for the applied index took too long",
            ),
            (E::Corrupt, 15, "corrupt cluster"),
            (
                E::WrongDowngradeVersionFormat,
                3,
                "wrong downgrade target version format",
            ),
            (
                E::InvalidDowngradeTargetVersion,
                3,
                "invalid downgrade target version",
            ),
            (E::NoInflightDowngrade, 9, "no inflight downgrade job"),
            (E::RootUserNotExist, 9, "root user does not exist"),
            (E::RootRoleNotExist, 9, "root user does not have root role"),
            (E::UserAlreadyExists, 9, "user name already exists"),
            (E::UserEmpty, 3, "user name is empty"),
            (E::UserNotFound, 9, "user name not found"),
            (E::RoleAlreadyExists, 9, "role name already exists"),
            (E::RoleNotFound, 9, "role name not found"),
            (E::RoleEmpty, 3, "role name is empty"),
            (
                E::AuthFailed,
                3,
                "authentication failed, invalid user ID or password",
            ),
            (E::PermissionNotGiven, 3, "permission not given"),
            (E::PermissionDenied, 7, "permission denied"),
            (E::RoleNotGranted, 9, "role is not granted to the user"),
            (
                E::PermissionNotGranted,
                9,
                "permission is not granted to the role",
            ),
            (E::AuthNotEnabled, 9, "authentication is not enabled"),
            (E::InvalidAuthToken, 16, "invalid auth token"),
            (E::InvalidAuthManagement, 3, "invalid auth management"),
            (E::AuthOldRevision, 3, "revision of auth store is old"),
            (E::UnknownMethod, 2, "unknown method"),
        ];
        for (error, code, text) in table {
            let status = Status::from(error);
            assert_eq!(status.code() as i32, code, "{text}");
            assert_eq!(status.message(), format!("etcdserver: {text}"));
        }
    }
}
