//! The web page, at the admin listener and at a hub. It is made from `ui/`, and part of the binary: it loads nothing from
//! elsewhere, and runs no script but its own. It shows what the API says, with the rights of whoever looks at it.

use std::io::Write as _;
use std::sync::LazyLock;

use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use flate2::Compression;
use flate2::write::GzEncoder;

/// Where it is.
pub(crate) const PAGE: &str = "/ui/";

/// What it may do: load its own files and ask its own server. Nothing may show it in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of the page.
struct File {
    media: &'static str,
    text: &'static [u8],
    gzip: Vec<u8>,
    /// Another for another text.
    tag: HeaderValue,
}

impl File {
    fn new(media: &'static str, text: &'static [u8]) -> Self {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        // Memory takes all that is written to it.
        let gzip = gzip.write_all(text).and_then(|()| gzip.finish()).unwrap_or_default();
        let digest = ring::digest::digest(&ring::digest::SHA256, text);
        let tag = format!("\"{}\"", overlane_config::blueprint::hex(&digest.as_ref()[..8]));
        let tag = HeaderValue::try_from(tag).unwrap_or_else(|_| HeaderValue::from_static("\"\""));
        Self { media, text, gzip, tag }
    }

    fn answer(&'static self, headers: &HeaderMap) -> Response {
        let always = [
            (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
            (
                HeaderName::from_static("cross-origin-resource-policy"),
                HeaderValue::from_static("same-origin"),
            ),
            // Asked for again each time, and sent only where it is another: after an upgrade nobody sees half of each.
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (header::VARY, HeaderValue::from_static("accept-encoding")),
            (header::ETAG, self.tag.clone()),
        ];
        let listed = |name, word: &str| {
            let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
            values.flat_map(|value| value.split(',')).any(|one| one.trim().trim_start_matches("W/") == word)
        };
        if listed(header::IF_NONE_MATCH, self.tag.to_str().unwrap_or_default()) {
            return (StatusCode::NOT_MODIFIED, always).into_response();
        }
        let media = [(header::CONTENT_TYPE, self.media)];
        match listed(header::ACCEPT_ENCODING, "gzip") && !self.gzip.is_empty() {
            true => (always, media, [(header::CONTENT_ENCODING, "gzip")], &self.gzip[..]).into_response(),
            false => (always, media, self.text).into_response(),
        }
    }
}

static INDEX: LazyLock<File> =
    LazyLock::new(|| File::new("text/html; charset=utf-8", include_bytes!("../ui/index.html")));
static SCRIPT: LazyLock<File> =
    LazyLock::new(|| File::new("text/javascript; charset=utf-8", include_bytes!("../ui/page.js")));
static STYLE: LazyLock<File> =
    LazyLock::new(|| File::new("text/css; charset=utf-8", include_bytes!("../ui/page.css")));

/// The page. It says nothing of anybody, so that it can be had without a token; what it then asks for wants one.
pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let file = |file: &'static LazyLock<File>| get(async move |headers: HeaderMap| file.answer(&headers));
    Router::new()
        .route("/", get(entrance))
        .route("/ui", get(async || Redirect::permanent("ui/")))
        .route(PAGE, file(&INDEX))
        .route("/ui/page.js", file(&SCRIPT))
        .route("/ui/page.css", file(&STYLE))
}

/// Browsers are shown the page; programs are told where it is.
async fn entrance(headers: HeaderMap) -> Response {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match accepted.contains("text/html") {
        true => Redirect::to("ui/").into_response(),
        false => {
            super::problem(StatusCode::NOT_FOUND, "the page is at /ui/, and /openapi.json describes the API")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use http_body_util::BodyExt as _;

    use super::*;

    /// What a file is answered with, by a request with these headers.
    async fn answer(file: &'static File, headers: &[(HeaderName, &str)]) -> (StatusCode, HeaderMap, Vec<u8>) {
        let pair = |(name, value): &(HeaderName, &str)| (name.clone(), value.parse().expect("a value"));
        let (head, body) = file.answer(&headers.iter().map(pair).collect()).into_parts();
        (head.status, head.headers, body.collect().await.expect("a body").to_bytes().to_vec())
    }

    #[test]
    fn all_of_the_page_weighs_less_than_80_kilobytes() {
        let weight: usize = [&INDEX, &SCRIPT, &STYLE].iter().map(|file| file.gzip.len()).sum();
        assert!((1000..80_000).contains(&weight), "{weight} bytes");
    }

    #[tokio::test]
    async fn the_page_may_load_nothing_from_elsewhere_and_be_in_no_frame() {
        for file in [&INDEX, &SCRIPT, &STYLE] {
            let (status, headers, body) = answer(file, &[]).await;
            assert_eq!(status, StatusCode::OK);
            assert_eq!(headers[header::CONTENT_SECURITY_POLICY], POLICY);
            assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
            // Names of what SVG is are no addresses.
            let text = String::from_utf8(body).expect("text").replace("http://www.w3.org/", "");
            for elsewhere in ["@import", "=\"http", "url(http", "sourceMappingURL", "<style", "<script>"] {
                assert!(!text.contains(elsewhere), "{} has {elsewhere}", file.media);
            }
        }
    }

    #[tokio::test]
    async fn what_a_browser_has_already_is_not_sent_again() {
        let (_, headers, plain) = answer(&SCRIPT, &[]).await;
        let tag = headers[header::ETAG].to_str().expect("text");
        let (status, again, body) = answer(&SCRIPT, &[(header::IF_NONE_MATCH, tag)]).await;
        assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0));
        assert_eq!(again[header::ETAG], headers[header::ETAG]);
        let (status, _, body) = answer(&SCRIPT, &[(header::IF_NONE_MATCH, "\"another\"")]).await;
        assert_eq!((status, body.len()), (StatusCode::OK, plain.len()));
        let (_, headers, gzip) = answer(&SCRIPT, &[(header::ACCEPT_ENCODING, "br, gzip")]).await;
        assert_eq!(headers[header::CONTENT_ENCODING], "gzip");
        let mut unpacked = Vec::new();
        GzDecoder::new(&gzip[..]).read_to_end(&mut unpacked).expect("gzip");
        assert_eq!(unpacked, plain);
    }

    #[tokio::test]
    async fn browsers_are_led_to_the_page_and_programs_are_told_where_it_is() {
        let accepts = |what: &str| [(header::ACCEPT, what.parse().expect("a value"))].into_iter().collect();
        let response = entrance(accepts("text/html,*/*")).await;
        assert_eq!(
            (response.status(), &response.headers()[header::LOCATION]),
            (StatusCode::SEE_OTHER, &HeaderValue::from_static("ui/"))
        );
        let response = entrance(accepts("*/*")).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert!(String::from_utf8_lossy(&body).contains(PAGE));
    }
}
