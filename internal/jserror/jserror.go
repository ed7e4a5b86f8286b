// Package jserror maps error codes of JetStream to their meaning for pgjet. It holds the
// only list of those codes: readiness, status, verdicts and retries all derive from [Of].
// It has no dependencies, so that code without connections may use it; package natsconn
// applies it to errors of the client library.
package jserror

// A Class groups errors that call for the same reaction. Its text is the reason that
// operators see in status, readiness and logs.
type Class string

// The classes. [Of] returns [Failed] for codes that are not listed.
const (
	// Fenced: the stream does not end as the writer expected, so another one wrote.
	Fenced Class = "fenced"
	// Refused: the stream never stores this message, because of its size or form.
	Refused Class = "refused"
	// Full: no room in the stream, the account or the server.
	Full Class = "stream_full"
	// Limit: the account or the stream may have no more streams or consumers.
	Limit Class = "nats_limit"
	// StreamMissing: there is no such stream.
	StreamMissing Class = "stream_missing"
	// StreamDiffers: the stream is configured in a way that breaks a promise.
	StreamDiffers Class = "stream_differs"
	// ConsumerMissing: there is no such durable consumer.
	ConsumerMissing Class = "consumer_missing"
	// ConsumerDiffers: a consumer of this name has another configuration.
	ConsumerDiffers Class = "consumer_differs"
	// MessageMissing: the stream holds no such message.
	MessageMissing Class = "message_missing"
	// Permission: the user lacks a permission.
	Permission Class = "permission_denied"
	// Outdated: the server is older than pgjet needs.
	Outdated Class = "nats_outdated"
	// Disabled: the server or the account has no JetStream.
	Disabled Class = "jetstream_disabled"
	// Busy: the server does not answer now, such as while its cluster elects a leader.
	Busy Class = "stream_unresponsive"
	// Unreachable: no connection to NATS.
	Unreachable Class = "nats_unreachable"
	// Failed: any other error that JetStream reports.
	Failed Class = "stream_error"
)

// Reasons are all classes that can be the reason why a process gets nothing done.
var Reasons = []Class{
	Fenced, Refused, Full, Limit, StreamMissing, StreamDiffers, ConsumerMissing, ConsumerDiffers, Permission, Outdated, Disabled, Busy, Unreachable, Failed,
}

// Single codes that are used by name.
const (
	WrongLastSequence = 10071
	MessageNotFound   = 10037
)

// codes are the error codes of nats-server that pgjet may meet, each with its name there.
var codes = map[int]struct {
	name  string
	class Class
}{
	10070: {"StreamWrongLastMsgID", Fenced},
	10071: {"StreamWrongLastSequence", Fenced},
	10164: {"StreamWrongLastSequenceConstant", Fenced},
	10158: {"StreamDuplicateMessageConflict", Fenced},          // the id is being stored
	10201: {"AtomicPublishContainsDuplicateMessage", Fenced},   // the id was stored just now
	10176: {"AtomicPublishIncompleteBatch", Busy},              // a message of the batch was lost
	10210: {"AtomicPublishTooManyInflight", Busy},              //
	10211: {"BatchPublishTooManyInflight", Busy},               //
	10167: {"StreamTooManyRequests", Busy},                     // its queue is full
	10054: {"StreamMessageExceedsMaximum", Refused},            //
	10097: {"StreamHeaderExceedsMaximum", Refused},             //
	10077: {"StreamStoreFailed", Full},                         // a limit of the stream
	10002: {"AccountResourcesExceeded", Full},                  // a limit of the account
	10023: {"InsufficientResources", Full},                     // a limit of the server
	10028: {"MemoryResourcesExceeded", Full},                   //
	10047: {"StorageResourcesExceeded", Full},                  //
	10122: {"StreamMaxStreamBytesExceeded", Full},              //
	10113: {"StreamMaxBytesRequired", Limit},                   // the account requires max_bytes
	10026: {"MaximumConsumersLimit", Limit},                    //
	10027: {"MaximumStreamsLimit", Limit},                      //
	10120: {"NoLimits", Limit},                                 // the account has none for so many replicas
	10005: {"ClusterNoPeers", Limit},                           // too few servers for the replicas
	10074: {"StreamReplicasNotSupported", Limit},               //
	10121: {"ConsumerMaxPendingAckExcess", Limit},              //
	10153: {"ConsumerInactiveThresholdExcess", Limit},          //
	10059: {"StreamNotFound", StreamMissing},                   //
	10056: {"StreamMismatch", StreamDiffers},                   //
	10058: {"StreamNameExist", StreamDiffers},                  //
	10060: {"StreamNotMatch", StreamDiffers},                   // another stream captures the subject
	10065: {"StreamSubjectOverlap", StreamDiffers},             //
	10109: {"StreamSealed", StreamDiffers},                     //
	10174: {"AtomicPublishDisabled", StreamDiffers},            //
	10199: {"AtomicPublishTooLargeBatch", StreamDiffers},       //
	10014: {"ConsumerNotFound", ConsumerMissing},               //
	10149: {"ConsumerDoesNotExist", ConsumerMissing},           //
	10012: {"ConsumerCreate", ConsumerDiffers},                 // it exists, and cannot be changed into this
	10013: {"ConsumerNameExist", ConsumerDiffers},              //
	10105: {"ConsumerExistingActive", ConsumerDiffers},         //
	10148: {"ConsumerAlreadyExists", ConsumerDiffers},          //
	10204: {"ConsumerInvalidReset", ConsumerDiffers},           //
	10037: {"NoMessageFound", MessageMissing},                  //
	10043: {"SequenceNotFound", MessageMissing},                //
	10185: {"RequiredApiLevel", Outdated},                      //
	10035: {"NoAccount", Disabled},                             //
	10039: {"NotEnabledForAccount", Disabled},                  //
	10076: {"NotEnabled", Disabled},                            //
	10004: {"ClusterIncomplete", Busy},                         //
	10007: {"ClusterNotAssigned", Busy},                        //
	10008: {"ClusterNotAvail", Busy},                           //
	10009: {"ClusterNotLeader", Busy},                          //
	10096: {"StreamInvalid", Busy},                             // it is being closed
	10118: {"StreamOffline", Busy},                             //
	10119: {"ConsumerOffline", Busy},                           //
	10194: {"StreamOfflineReason", Busy},                       //
	10195: {"ConsumerOfflineReason", Busy},                     //
	10124: {"StreamMoveInProgress", Busy},                      //
	10226: {"StreamReconfigureInProgress", Busy},               //
	10163: {"StreamExpectedLastSeqPerSubjectNotReady", Fenced}, //
}

// Of returns the class of an error code: [Failed] if it is not listed, "" for 0.
func Of(code int) Class {
	if code == 0 {
		return ""
	}
	if row, ok := codes[code]; ok {
		return row.class
	}
	return Failed
}

// Name returns the name that nats-server gives a code, without JS and Err; "" if it is not
// listed.
func Name(code int) string { return codes[code].name }

// Passing reports whether an error of this class passes by itself or with an operator's
// help, while the request is valid: it may be sent again unchanged.
func (c Class) Passing() bool {
	switch c {
	case Full, Limit, Permission, Outdated, Disabled, Busy, Unreachable:
		return true
	}
	return false
}

// advice says what to do. Errors that pass by themselves need none.
var advice = map[Class]string{
	Full:            "make room, or raise the limit: of the stream (max_bytes, max_msgs), of the account, or of the server's store",
	Limit:           "raise the limit of the account, the stream or the server",
	StreamMissing:   "run: pgjet stream ensure",
	Outdated:        "upgrade the servers",
	Disabled:        "enable JetStream on the server and for the account; in an account that imports it, set --nats-domain, and compare with: pgjet nats accounts",
	ConsumerMissing: "run: pgjet consumer ensure; a process of the consumer makes it as well, if NATS lets it",
}

// Advice returns what to do about an error of this class, in a few words; "" if waiting is
// enough, or if it depends.
func (c Class) Advice() string { return advice[c] }
