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
        let value = value.trim_ascii();
        let first = |ends: &[u8]| value.split(|byte| ends.contains(byte)).next().unwrap_or_default();
        match HEADERS[header] {
            "traceparent" => w3c(value),
            "b3" => b3(first(b"-")),
            "x-b3-traceid" => b3(value),
            "uber-trace-id" => jaeger(value),
            "x-datadog-trace-id" => decimal(value),
            "x-amzn-trace-id" => xray(value),
            _ => wide(first(b"/;").try_into().ok()?),
        }
    }

    /// The trace that all 32 digits of an id name.
    #[must_use]
    pub fn of_digits(digits: &[u8; 32]) -> Option<Self> {
        wide(digits)
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

/// What a `traceparent` says (W3C Trace Context): a trace, a span of it, and whether that is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The trace.
    pub trace: u128,
    /// The span.
    pub span: u64,
    /// The lowest bit says that it is sampled, the next one that the trace's id is random.
    pub flags: u8,
}

impl Span {
    /// The span that the value of a `traceparent` names.
    #[must_use]
    pub fn read(value: &[u8]) -> Option<Self> {
        let value = value.trim_ascii();
        w3c(value)?;
        // It is right: each number is where it has to be.
        let (high, low) = (number(value.get(3..19)?)?, number(value.get(19..35)?)?);
        let flags = u8::try_from(number(value.get(53..55)?)?).ok()?;
        Some(Self {
            trace: u128::from(high) << 64 | u128::from(low),
            span: number(value.get(36..52)?)?,
            flags,
        })
    }

    /// Whether it is sampled.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// The same without reading the rest; true as well where that is no span at all.
    #[must_use]
    pub fn may_be_sampled(value: &[u8]) -> bool {
        let flags = value.trim_ascii().get(54).and_then(|digit| number(&[*digit]));
        flags.is_none_or(|flags| flags & 1 == 1)
    }

    /// The value of a `traceparent` that names it.
    #[must_use]
    pub fn text(&self) -> [u8; 55] {
        let mut text = *b"00-................................-................-..";
        // Halves of it.
        text[3..19].copy_from_slice(&digits((self.trace >> 64) as u64));
        text[19..35].copy_from_slice(&digits(self.trace as u64));
        text[36..52].copy_from_slice(&digits(self.span));
        text[53..55].copy_from_slice(&digits(u64::from(self.flags))[14..]);
        text
    }
}

/// At most 16 hexadecimal digits, in either case.
fn number(digits: &[u8]) -> Option<u64> {
    let mut all = [b'0'; 16];
    all[16_usize.checked_sub(digits.len())?..].copy_from_slice(digits);
    sixteen(&all)
}

/// Eight hexadecimal digits at once, in either case. Each byte's low half is its digit, 9 too little for a
/// letter; what these digits are written as is then compared with what was read.
fn eight(digits: [u8; 8]) -> Option<u64> {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let read = u64::from_be_bytes(digits);
    let letters = (read >> 6) & EACH;
    let values = (read & (EACH * 0xf)) + letters * 9;
    let above_nine = ((values + EACH * 6) >> 4) & EACH;
    let written = values + EACH * u64::from(b'0') + above_nine * u64::from(b'a' - b'0' - 10);
    if written != (read | letters << 5) || values & (EACH * 0xf0) != 0 {
        return None;
    }
    // 0A0B0C0D… → ABCD…
    let pairs = (values >> 4 | values) & 0x00ff_00ff_00ff_00ff;
    let quads = (pairs >> 8 | pairs) & 0x0000_ffff_0000_ffff;
    Some((quads >> 16 | quads) & 0xffff_ffff)
}

/// A number as 16 hexadecimal digits, in lower case.
#[must_use]
pub fn digits(number: u64) -> [u8; 16] {
    let (high, low) = (written(number >> 32), written(number & 0xffff_ffff));
    let mut digits = [0; 16];
    for (out, half) in digits.iter_mut().zip([high, low].as_flattened()) {
        *out = *half;
    }
    digits
}

/// The reverse of [`eight`], for a number of 32 bits.
fn written(number: u64) -> [u8; 8] {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let quads = (number | number << 16) & 0x0000_ffff_0000_ffff;
    let pairs = (quads | quads << 8) & 0x00ff_00ff_00ff_00ff;
    let values = (pairs | pairs << 4) & (EACH * 0xf);
    let above_nine = ((values + EACH * 6) >> 4) & EACH;
    (values + EACH * u64::from(b'0') + above_nine * u64::from(b'a' - b'0' - 10)).to_be_bytes()
}

fn sixteen(digits: &[u8; 16]) -> Option<u64> {
    let ([high, low], _) = digits.as_chunks::<8>() else {
        return None;
    };
    Some(eight(*high)? << 32 | eight(*low)?)
}

/// Of 32 digits the low half, unless that is empty: then whoever made it fills from the left.
fn wide(digits: &[u8; 32]) -> Option<TraceId> {
    let ([high, low], _) = digits.as_chunks::<16>() else {
        return None;
    };
    let (high, low) = (sixteen(high)?, sixteen(low)?);
    TraceId::new(low).or_else(|| TraceId::new(high))
}

/// 16 or 32 digits.
fn b3(digits: &[u8]) -> Option<TraceId> {
    match digits.len() {
        16 => TraceId::new(number(digits)?),
        _ => wide(digits.try_into().ok()?),
    }
}

/// `00-<32 digits>-<16 digits>-<2 digits>`, in lower case; later versions may have more after another dash.
fn w3c(value: &[u8]) -> Option<TraceId> {
    let (known, more) = value.split_first_chunk::<55>()?;
    let [v0, v1, b'-', rest @ ..] = known else {
        return None;
    };
    let (trace, rest) = rest.split_first_chunk::<32>()?;
    let [b'-', span @ .., b'-', f0, f1] = rest else {
        return None;
    };
    let whole = match (v0, v1) {
        (b'0', b'0') => more.is_empty(),
        (b'f', b'f') => false,
        _ => more.first().is_none_or(|next| *next == b'-'),
    };
    let others = eight([*v0, *v1, *f0, *f1, b'0', b'0', b'0', b'0']);
    // Of what is a digit, only a capital letter lacks this bit and has that one.
    let capital = known.iter().fold(false, |any, byte| any | (byte & 0x60 == 0x40));
    let right = whole && !capital && others.is_some() && sixteen(span.try_into().ok()?)? != 0;
    right.then(|| wide(trace)).flatten()
}

/// `trace:span:parent:flags`, without leading zeros; some clients send `%3A` for `:`.
fn jaeger(value: &[u8]) -> Option<TraceId> {
    let end = value.iter().position(|byte| matches!(byte, b':' | b'%'))?;
    let digits = &value[..end];
    match digits.len() {
        1..=16 => TraceId::new(number(digits)?),
        17..=32 => {
            let (high, low) = digits.split_at(digits.len() - 16);
            let (high, low) = (number(high)?, number(low)?);
            TraceId::new(low).or_else(|| TraceId::new(high))
        }
        _ => None,
    }
}

/// An unsigned number of 64 bits.
fn decimal(value: &[u8]) -> Option<TraceId> {
    let all = value.iter().all(u8::is_ascii_digit);
    all.then(|| std::str::from_utf8(value).ok()?.parse().ok()).flatten().and_then(TraceId::new)
}

/// `Root=1-<8 digits>-<24 digits>;Parent=…;Sampled=…`, its fields in any order.
fn xray(value: &[u8]) -> Option<TraceId> {
    let mut fields = value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let root = fields.find_map(|field| field.strip_prefix(b"Root=1-"))?;
    let (time, unique) = root.split_first_chunk::<8>()?;
    let [b'-', unique @ ..] = unique else {
        return None;
    };
    let (begin, low) = <&[u8; 24]>::try_from(unique).ok()?.split_at(8);
    number(time).and(number(begin))?;
    TraceId::new(number(low)?)
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
    fn a_span_is_read_as_it_is_written() {
        let text = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03";
        let span = Span::read(text).expect("a span");
        let expected =
            Span { trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, span: 0xb7ad_6b71_6920_3331, flags: 3 };
        assert_eq!((span, &span.text(), span.is_sampled()), (expected, text, true));
        let later = b"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more";
        assert_eq!(Span::read(later), Some(Span { flags: 0, ..expected }));
        assert_eq!(Span::read(b"00-00000000000000000000000000000000-b7ad6b7169203331-01"), None);
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
        fn digits_are_read_as_the_library_reads_them(digits in prop::collection::vec(any::<u8>(), 0..18), text in "[0-9a-fA-F@G/:`g]{1,16}") {
            let model = |digits: &[u8]| {
                let well = digits.len() <= 16 && digits.iter().all(u8::is_ascii_hexdigit);
                well.then(|| std::str::from_utf8(digits).map_or(0, |text| u64::from_str_radix(text, 16).unwrap_or(0)))
            };
            prop_assert_eq!(number(&digits), model(&digits));
            prop_assert_eq!(number(text.as_bytes()), model(text.as_bytes()));
        }

        #[test]
        fn numbers_are_written_as_the_library_writes_them(number: u64) {
            prop_assert_eq!(digits(number).to_vec(), format!("{number:016x}").into_bytes());
        }

        #[test]
        fn no_value_panics(value in prop::collection::vec(any::<u8>(), 0..80)) {
            for header in 0..HEADERS.len() {
                let _ = TraceId::of(header, &value);
            }
        }

        #[test]
        fn what_is_sampled_may_be(trace in 1u128.., span in 1u64.., flags: u8) {
            let span = Span { trace, span, flags };
            prop_assert_eq!(Span::read(&span.text()), Some(span));
            prop_assert_eq!(Span::may_be_sampled(&span.text()), span.is_sampled());
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
