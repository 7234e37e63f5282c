//! Stands in for `libz-ng-sys`, whose build script wants cmake. It exports only what `flate2`
//! imports and forwards to `libz-rs-sys` (zlib-rs, the zlib rewrite by the Trifecta Tech
//! Foundation). If flate2 ever imports one symbol more, the build breaks here, loudly.
//!
//! `z_stream` is declared anew because flate2 expects zlib-ng's spelling: the allocator callbacks
//! are plain function pointers there and `Option`s in zlib-rs. Both are one nullable word in C.
#![allow(non_camel_case_types, non_snake_case, clippy::missing_safety_doc, clippy::too_many_arguments)]

use core::ffi::{c_char, c_int, c_ulong, c_void};
use libz_rs_sys as rs;

pub use rs::{
    Z_BLOCK, Z_BUF_ERROR, Z_DATA_ERROR, Z_DEFAULT_STRATEGY, Z_DEFLATED, Z_FINISH, Z_FULL_FLUSH,
    Z_MEM_ERROR, Z_NEED_DICT, Z_NO_FLUSH, Z_OK, Z_PARTIAL_FLUSH, Z_STREAM_END, Z_STREAM_ERROR,
    Z_SYNC_FLUSH, zlibVersion,
};

pub type z_size = c_ulong;
pub type uInt = u32;

/// zlib's stream state (zlib.h), field by field as zlib-rs lays it out.
#[repr(C)]
pub struct z_stream {
    pub next_in: *mut u8,
    pub avail_in: u32,
    pub total_in: z_size,
    pub next_out: *mut u8,
    pub avail_out: u32,
    pub total_out: z_size,
    pub msg: *mut c_char,
    pub state: *mut c_void,
    pub zalloc: extern "C" fn(*mut c_void, u32, u32) -> *mut c_void,
    pub zfree: extern "C" fn(*mut c_void, *mut c_void),
    pub opaque: *mut c_void,
    pub data_type: c_int,
    pub adler: c_ulong,
    pub reserved: c_ulong,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<z_stream>() == size_of::<rs::z_stream>());
    assert!(offset_of!(z_stream, next_out) == offset_of!(rs::z_stream, next_out));
    assert!(offset_of!(z_stream, zalloc) == offset_of!(rs::z_stream, zalloc));
    assert!(offset_of!(z_stream, opaque) == offset_of!(rs::z_stream, opaque));
    assert!(offset_of!(z_stream, reserved) == offset_of!(rs::z_stream, reserved));
};

macro_rules! forward {
    ($($name:ident($($arg:ident: $ty:ty),*);)*) => {$(
        pub unsafe fn $name(strm: *mut z_stream, $($arg: $ty),*) -> c_int {
            // SAFETY: the two `z_stream`s have one layout (asserted above); the caller upholds zlib's contract.
            unsafe { rs::$name(strm.cast(), $($arg),*) }
        }
    )*};
}

forward! {
    deflate(flush: c_int);
    deflateEnd();
    deflateReset();
    deflateParams(level: c_int, strategy: c_int);
    deflateSetDictionary(dictionary: *const u8, length: u32);
    deflateInit2_(level: c_int, method: c_int, window_bits: c_int, mem_level: c_int, strategy: c_int, version: *const c_char, size: c_int);
    inflate(flush: c_int);
    inflateEnd();
    inflateReset2(window_bits: c_int);
    inflateSetDictionary(dictionary: *const u8, length: u32);
    inflateInit2_(window_bits: c_int, version: *const c_char, size: c_int);
}
