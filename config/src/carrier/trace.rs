//! Trace ids: what tells that a call was made while a request was handled.
//!
//! Whatever tracer an application has, one id names the whole trace, and only the span changes at
//! each hop. A [`TraceId`] is the low 64 bits of it, which all dialects carry: those with 64 bits
//! (B3, Jaeger, Datadog) send the low half of the 128 that others send (W3C Trace Context level 2,
//! section 3.2.2.3).

use std::num::NonZeroU64;

/// The headers in which a trace id is looked for, in order: the first that holds one counts.
pub const HEADERS: [&str; 7] = [
    "traceparent",
    "b3",
    "x-b3-traceid",
    "uber-trace-id",
    "x-datadog-trace-id",
    "x-amzn-trace-id",
    "x-cloud-trace-context",
];

/// Headers that say more about a trace, and mean nothing without its id.
pub const COMPANIONS: [&str; 8] = [
    "tracestate",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-datadog-parent-id",
    "x-datadog-tags",
    "x-datadog-sampling-priority",
];

/// The header with a request's id, which some applications forward and nothing else.
pub const REQUEST_ID: &str = "x-request-id";

/// The id of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(NonZeroU64);

impl TraceId {
    /// The trace that a request's header fields name: that of the first of [`HEADERS`] that holds one.
    #[must_use]
    pub fn read<'h>(fields: impl IntoIterator<Item = (&'h str, &'h [u8])>) -> Option<Self> {
        let mut found: Option<(usize, Self)> = None;
        for (name, value) in fields {
            let Some(rank) = HEADERS.iter().position(|header| header.eq_ignore_ascii_case(name)) else {
                continue;
            };
            if found.is_none_or(|(best, _)| rank < best)
                && let Some(id) = Self::of(rank, value)
            {
                found = Some((rank, id));
            }
        }
        found.map(|(_, id)| id)
    }

    /// The trace that the value of a header of [`HEADERS`] names.
    fn of(header: usize, value: &[u8]) -> Option<Self> {
        let value = std::str::from_utf8(value).ok()?.trim_ascii();
        match HEADERS[header] {
            "traceparent" => w3c(value),
            "b3" => hex(value.split('-').next()?, &[16, 32]),
            "x-b3-traceid" => hex(value, &[16, 32]),
            "uber-trace-id" => jaeger(value),
            "x-datadog-trace-id" => decimal(value),
            "x-amzn-trace-id" => xray(value),
            _ => hex(value.split(['/', ';']).next()?, &[32]),
        }
    }

    /// The trace with this number; `None` for 0, which is nobody's.
    #[must_use]
    pub fn new(id: u64) -> Option<Self> {
        NonZeroU64::new(id).map(Self)
    }

    /// Its number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

/// Of 128 bits the low half, unless that is empty: then whoever made it fills from the left.
fn low(id: u128) -> Option<TraceId> {
    let half = |id: u128| TraceId::new(u64::try_from(id & u128::from(u64::MAX)).unwrap_or(0));
    half(id).or_else(|| half(id >> 64))
}

/// Exactly so many hexadecimal digits, in either case.
fn hex(digits: &str, lengths: &[usize]) -> Option<TraceId> {
    let all = lengths.contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    all.then(|| u128::from_str_radix(digits, 16).ok()).flatten().and_then(low)
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, in lower case; later versions may have more after another dash.
fn w3c(value: &str) -> Option<TraceId> {
    let bytes = value.as_bytes();
    let dashes = bytes.len() >= 55 && [2, 35, 52].into_iter().all(|at| bytes[at] == b'-');
    if !dashes || !value.is_ascii() || bytes[..55].iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    let well = |text: &str| text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let version = &value[..2];
    let rest = match version {
        "00" => bytes.len() == 55,
        "ff" => false,
        _ => bytes.get(55).is_none_or(|next| *next == b'-'),
    };
    let span = &value[36..52];
    let right = rest && [version, span, &value[53..55]].into_iter().all(well) && span != "0000000000000000";
    right.then(|| hex(&value[3..35], &[32])).flatten()
}

/// `trace:span:parent:flags`, without leading zeros; some clients send `%3A` for `:`.
fn jaeger(value: &str) -> Option<TraceId> {
    let end = value.find([':', '%'])?;
    let digits = &value[..end];
    let right = (1..=32).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    right.then(|| u128::from_str_radix(digits, 16).ok()).flatten().and_then(low)
}

/// An unsigned number of 64 bits.
fn decimal(value: &str) -> Option<TraceId> {
    let right = value.bytes().all(|digit| digit.is_ascii_digit());
    right.then(|| value.parse().ok()).flatten().and_then(TraceId::new)
}

/// `Root=1-<8 hex>-<24 hex>;Parent=…;Sampled=…`, its fields in any order.
fn xray(value: &str) -> Option<TraceId> {
    let root = value.split(';').find_map(|field| field.trim().strip_prefix("Root="))?;
    let (time, unique) = root.strip_prefix("1-")?.split_once('-')?;
    let well =
        |text: &str, length| text.len() == length && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    if !well(time, 8) || !well(unique, 24) {
        return None;
    }
    hex(&unique[8..], &[16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(header: &str, value: &str) -> Option<u64> {
        TraceId::read([(header, value.as_bytes())]).map(TraceId::get)
    }

    #[test]
    fn every_format_names_the_low_64_bits() {
        let low = Some(0x8448_eb21_1c80_319c);
        for (header, value) in [
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("traceparent", "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-the-future"),
            ("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1-05e3ac9a4f6e3b90"),
            ("b3", "8448eb211c80319c-b7ad6b7169203331"),
            ("x-b3-traceid", "0AF7651916CD43DD8448EB211C80319C"),
            ("uber-trace-id", "af7651916cd43dd8448eb211c80319c:b7ad6b7169203331:0:1"),
            ("uber-trace-id", "8448eb211c80319c%3Ab7ad6b7169203331%3A0%3A1"),
            ("x-datadog-trace-id", "9532127138774266268"),
            (
                "x-amzn-trace-id",
                "Self=1-67891234-12456789abcdef012345678;Root=1-0af76519-16cd43dd8448eb211c80319c;Sampled=1",
            ),
            ("x-cloud-trace-context", "0af7651916cd43dd8448eb211c80319c/12345;o=1"),
        ] {
            assert_eq!(read(header, value), low, "{header}: {value}");
        }
    }

    #[test]
    fn what_is_no_trace_id_names_none() {
        for (header, value) in [
            ("traceparent", "00-00000000000000000000000000000000-b7ad6b7169203331-01"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"),
            ("traceparent", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("traceparent", "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"),
            ("b3", "0"),
            ("b3", "8448eb211c80319"),
            ("x-b3-traceid", "0000000000000000"),
            ("uber-trace-id", ":1:0:1"),
            ("uber-trace-id", "+1:1:0:1"),
            ("x-datadog-trace-id", "0"),
            ("x-datadog-trace-id", "+7"),
            ("x-datadog-trace-id", "18446744073709551616"),
            ("x-amzn-trace-id", "Root=1-0af7651-916cd43dd8448eb211c80319c"),
            ("x-amzn-trace-id", "Parent=1-0af76519-16cd43dd8448eb211c80319c"),
            ("x-cloud-trace-context", "0af7651916cd43dd/1"),
            ("traceparent", "é"),
        ] {
            assert_eq!(read(header, value), None, "{header}: {value}");
        }
    }

    #[test]
    fn the_first_header_that_holds_one_counts() {
        let fields = [
            ("traceparent", "garbage"),
            ("X-Datadog-Trace-Id", "7"),
            ("B3", "000000000000000a-1"),
            ("x", "y"),
        ];
        let read = TraceId::read(fields.map(|(name, value)| (name, value.as_bytes())));
        assert_eq!(read.map(TraceId::get), Some(10));
    }

    proptest! {
        #[test]
        fn no_value_panics(value in prop::collection::vec(any::<u8>(), 0..80)) {
            for header in 0..HEADERS.len() {
                let _ = TraceId::of(header, &value);
            }
        }

        #[test]
        fn a_trace_is_the_same_in_all_formats(id in any::<u128>(), span in 1u64..) {
            prop_assume!(id as u64 != 0);
            let parent = format!("00-{id:032x}-{span:016x}-01");
            for (header, value) in [
                ("b3", format!("{id:032x}-{span:016x}-1")),
                ("x-b3-traceid", format!("{:016x}", id as u64)),
                ("uber-trace-id", format!("{id:x}:{span:x}:0:1")),
                ("x-datadog-trace-id", (id as u64).to_string()),
                ("x-cloud-trace-context", format!("{id:032x}/{span}")),
            ] {
                prop_assert_eq!(read(header, &value), read("traceparent", &parent), "{}", header);
            }
        }
    }
}
