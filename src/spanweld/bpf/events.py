"""What passes between the BPF programs and the agent.

Generated from the BTF of the BPF object by tools/generate_events.py: change the C headers instead.
Each structure has its little-endian layout, in which all padding is a field, in a constant of its
name in capitals; ``Name._make(NAME.unpack(data))`` decodes one.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import NamedTuple


class EventKind(IntEnum):
    """enum event_kind"""

    SERVER_SPAN = 1
    CONNECTION_OPAQUE = 2
    MANUAL_SPAN = 3
    MANUAL_ROOT = 4
    ADOPTION = 5
    SPAN_SAMPLE = 6
    CLIENT_SPAN = 7
    INJECT = 10
    CARRIED = 9
    WAKES_WANTED = 8


class Counter(IntEnum):
    """enum counter"""

    EVENT_LOST = 0
    READ_FAULT = 1
    TASKS_FULL = 2
    EDGES_FULL = 3
    STACK_FULL = 4
    SLOT_BUSY = 5
    CONNECTIONS_FULL = 6
    CONNECTION_BUSY = 7
    QUEUE_FULL = 8
    FRAMING_ERROR = 9
    HEAD_TOO_LONG = 10
    SCAN_LIMIT = 11
    RESPONSE_WITHOUT_REQUEST = 12
    TLS = 13
    HTTP2 = 14
    CARRIED_FULL = 15
    EXCLUDED = 16
    UNSAMPLED = 17
    SERVER_SPANS = 18
    ROOTS_ADOPTED = 19
    REMOTE_ADOPTED = 20
    ROOTS_UNSAMPLED = 21
    ROOTS_SIGNAL_BLOCKED = 22
    ROOTS_NO_TRACER = 23
    ROOTS_OWN_ID = 24
    ROOTS_UNWRITTEN = 25
    PARENTS_UNWRITTEN = 26
    ROOTS_DROPPED = 27
    MANUAL_SPANS = 28
    CLIENT_SPANS = 29
    CAUSE_UNKNOWN = 30
    REQUESTS_INJECTED = 31
    REQUESTS_OWN = 32
    REQUESTS_BARE = 33
    INJECT_REFUSED = 34
    MAX = 35


class Adoption(IntEnum):
    """enum adoption"""

    NONE = 0
    UNVERIFIED = 1
    VERIFIED = 2
    MISMATCH = 3
    LEARNING = 4


class AdoptMode(IntEnum):
    """enum adopt_mode"""

    ACTIVE = 0
    SERVER = 1


class WriteMode(IntEnum):
    """enum write_mode"""

    OFF = 0
    KERNEL = 1
    STOP = 2
    INLINE = 3


class SpanFrameKind(IntEnum):
    """enum span_frame_kind"""

    SERVER = 1
    MANUAL = 2
    CLIENT = 3


class SharedPlace(IntEnum):
    """enum shared_place"""

    BUCKETS = 0
    STARTS = 1024
    HANDED_ON = 1056
    WAKES = 1057
    OPEN = 1058
    LISTED = 1090
    EDGES = 1154
    WAKE_BUCKETS = 1410
    EVENT_DRIVERS = 1922
    ELEMENTS = 1923


class HttpMethod(IntEnum):
    """enum http_method"""

    OTHER = 0
    GET = 1
    POST = 2
    PUT = 3
    HEAD = 4
    PATCH = 5
    DELETE = 6
    OPTIONS = 7
    TRACE = 8
    CONNECT = 9


class HttpEnd(IntEnum):
    """enum http_end"""

    RESPONSE = 0
    CLOSED = 1
    UPGRADED = 2
    UNFRAMED = 3
    RESET = 4
    TIMED_OUT = 5


class ConnectionRole(IntEnum):
    """enum connection_role"""

    SERVER = 0
    CLIENT = 1


class OpaqueReason(IntEnum):
    """enum opaque_reason"""

    TLS = 1
    HTTP2 = 2
    FRAMING = 3
    HEAD_TOO_LONG = 4
    SCAN_LIMIT = 5
    RESPONSE_WITHOUT_REQUEST = 6
    BUSY = 7
    QUEUE_FULL = 8


class InjectNotice(IntEnum):
    """enum inject_notice"""

    LET_GO = 1
    OLD_CONNECTION = 2


class Propagator(IntEnum):
    """enum propagator"""

    TRACECONTEXT = 0
    BAGGAGE = 1
    B3 = 2
    JAEGER = 3
    MAX = 4


class ManualRelation(IntEnum):
    """enum manual_relation"""

    OTHER = 0
    CHILD = 1
    ADOPTED = 2
    UNWRITTEN = 3


class ManualStatus(IntEnum):
    """enum manual_status"""

    UNSET = 0
    OK = 1
    ERROR = 2


class LayoutCheck(IntEnum):
    """enum layout_check"""

    TRACE_ID = 1
    SPAN_ID = 2
    PARENT_ID = 3
    PLAUSIBLE = 4
    CONTEXT = 5
    DATA = 6
    ARGUMENTS = 7


class InlinePlace(IntEnum):
    """enum inline_place"""

    GUARD = 65536
    AREA = 69632
    SPANS = 5947392
    WOKEN = 1024
    CALLERS = 1536
    TARGET = 2048
    IN_FLIGHT = 4096
    RING = 8192
    THREADS = 10240
    PATCHES = 12288
    RECORDS = 20480
    COUNTERS = 1593344
    MANUAL_SPANS = 1617920


class InlineSize(IntEnum):
    """enum inline_size"""

    PATCHES = 128
    CELLS = 64
    COUNTERS = 48
    RECORDS = 8192
    THREADS = 256
    STUBS = 4
    GENERATORS = 16
    CALLERS = 4


class InlineOperation(IntEnum):
    """enum inline_operation"""

    ATTACH = 1
    DETACH = 2


class EventHead(NamedTuple):
    """struct event_head, 16 bytes"""

    kind: int
    pid: int
    at: int


EVENT_HEAD = Struct("<IIQ")


class ServerSpanEvent(NamedTuple):
    """struct server_span_event, 592 bytes"""

    head_kind: int
    head_pid: int
    head_at: int
    start: int
    trace_id_low: int
    trace_id_high: int
    span_id: int
    parent_span_id: int
    server_span_id: int
    task_key: int
    addresses_family: int
    addresses_peer_port: int
    addresses_local_port: int
    addresses_pad: int
    addresses_peer: bytes
    addresses_local: bytes
    status: int
    target_length: int
    host_length: int
    user_agent_length: int
    flags: int
    method: int
    version_minor: int
    ended_by: int
    excluded: int
    traceparents: int
    target_cut: int
    remote: int
    method_name: bytes
    host: bytes
    user_agent: bytes
    target: bytes


SERVER_SPAN_EVENT = Struct("<IIQQQQQQQQHHHH16s16sHHHHBBBBBBBB16s64s128s256s")


class ConnectionOpaqueEvent(NamedTuple):
    """struct connection_opaque_event, 64 bytes"""

    head_kind: int
    head_pid: int
    head_at: int
    reason: int
    role: int
    addresses_family: int
    addresses_peer_port: int
    addresses_local_port: int
    addresses_pad: int
    addresses_peer: bytes
    addresses_local: bytes


CONNECTION_OPAQUE_EVENT = Struct("<IIQIIHHHH16s16s")


class ManualSpanEvent(NamedTuple):
    """struct manual_span_event, 176 bytes"""

    head_kind: int
    head_pid: int
    head_at: int
    start_seconds: int
    end_seconds: int
    trace_id_low: int
    trace_id_high: int
    span_id: int
    parent_span_id: int
    start_nanos: int
    end_nanos: int
    flags: int
    relation: int
    status: int
    kind: int
    name_length: int
    pad: int
    name: bytes


MANUAL_SPAN_EVENT = Struct("<IIQQQQQQQIIBBBBHH96s")


class ManualRootEvent(NamedTuple):
    """struct manual_root_event, 56 bytes"""

    head_kind: int
    head_pid: int
    head_at: int
    server_span_id: int
    trace_id_low: int
    trace_id_high: int
    span_id: int
    flags: int


MANUAL_ROOT_EVENT = Struct("<IIQQQQQQ")


class AdoptionEvent(NamedTuple):
    """struct adoption_event, 40 bytes"""

    head_kind: int
    head_pid: int
    head_at: int
    adoption: int
    what: int
    expected: int
    found: int


ADOPTION_EVENT = Struct("<IIQIIQQ")


class SpanSampleEvent(NamedTuple):
    """struct span_sample_event, 496 bytes"""

    head_kind: int
    head_pid: int
    head_at: int
    trace_id_low: int
    trace_id_high: int
    span_id: int
    number: int
    began: int
    trace_noted: int
    span_noted: int
    pad: int
    memory: bytes


SPAN_SAMPLE_EVENT = Struct("<IIQQQQIBBBB448s")


class Carried(NamedTuple):
    """struct carried, 10280 bytes"""

    head_kind: int
    head_pid: int
    head_at: int
    span_id: int
    tracestate_length: int
    baggage_length: int
    at: int
    end: int
    part: int
    state: int
    members: int
    tracestate_invalid: int
    pad: bytes
    tracestate: bytes
    baggage: bytes


CARRIED = Struct("<IIQQHHHHHBBB3s2048s8192s")


class Target(NamedTuple):
    """struct target, 192 bytes"""

    tokio_task_id: int
    tokio_task_tag: int
    sample_below: int
    adoption: int
    adopt_mode: int
    write_mode: int
    tracer: int
    parent_based: int
    wants_manual_spans: int
    builds_late: int
    context_argument: int
    parent_argument: int
    parent_is_id: int
    parent_proven: int
    ends_seen: int
    strangers: int
    samples: int
    astray_distance: int
    ends_astray: int
    wants_wakes: int
    inject: int
    said_old_connection: int
    layout_context_trace_id: int
    layout_context_span_id: int
    layout_context_is_remote: int
    layout_context_flags: int
    layout_span_context: int
    layout_span_data: int
    layout_span_parent_id: int
    layout_span_parent_is_remote: int
    layout_span_name_pointer: int
    layout_span_name_length: int
    layout_span_name_owned_pointer: int
    layout_span_name_owned_length: int
    layout_span_name_tag: int
    layout_span_kind: int
    layout_span_start_seconds: int
    layout_span_start_nanos: int
    layout_span_status: int
    layout_span_data_size: int
    layout_span_status_size: int
    layout_end_argument_seconds: int
    layout_end_argument_nanos: int
    layout_end_argument_tag: int
    layout_pad: int
    layout_span_data_none: int
    layout_span_name_borrowed: int
    layout_status_unset: int
    layout_status_ok: int
    layout_end_argument_tag_none: int
    layout_end_argument_none_nanos: int
    layout_pad_end: int


TARGET = Struct("<QQQIIIIIIIIIIHHIIIIIIIHHHHHHHHHHHHHHHHHHHHHHIQQQQQII")


class ConnectionKey(NamedTuple):
    """struct connection_key, 24 bytes"""

    socket: int
    inode: int
    pid: int
    pad: int


CONNECTION_KEY = Struct("<QQII")


class ListeningKey(NamedTuple):
    """struct listening_key, 8 bytes"""

    pid: int
    port: int


LISTENING_KEY = Struct("<II")


class OwnExportKey(NamedTuple):
    """struct own_export_key, 8 bytes"""

    pid: int
    port: int


OWN_EXPORT_KEY = Struct("<II")


class InjectKey(NamedTuple):
    """struct inject_key, 16 bytes"""

    cookie: int
    pid: int
    pad: int


INJECT_KEY = Struct("<QII")


class InjectEvent(NamedTuple):
    """struct inject_event, 32 bytes"""

    head_kind: int
    head_pid: int
    head_at: int
    cookie: int
    notice: int
    pad: int


INJECT_EVENT = Struct("<IIQQII")


class InlineHead(NamedTuple):
    """struct inline_head, 88 bytes"""

    owner: bytes
    magic: int
    base: int
    size: int
    version: int
    nr_patches: int
    pid: int
    own_pid: int
    trusted: int
    thread_ids_found: int


INLINE_HEAD = Struct("<40sQQQIIIIII")


class InlinePatch(NamedTuple):
    """struct inline_patch, 56 bytes"""

    address: int
    displaced: int
    before: bytes
    jump: bytes
    size: int
    pad: int


INLINE_PATCH = Struct("<QQ24s8sII")


class InlineRing(NamedTuple):
    """struct inline_ring, 128 bytes"""

    produced: int
    pad_produced: bytes
    consumed: int
    pad_consumed: bytes


INLINE_RING = Struct("<Q56sQ56s")


class InlineRecord(NamedTuple):
    """struct inline_record, 192 bytes"""

    ready: int
    size: int
    data: bytes


INLINE_RECORD = Struct("<II184s")


class InlineOrder(NamedTuple):
    """struct inline_order, 48 bytes"""

    operation: int
    nr_patches: int
    base: int
    size: int
    spans_size: int
    system_call: int
    code_size: int
    pad: int


INLINE_ORDER = Struct("<IIQQQQII")
