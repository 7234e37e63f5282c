//! The dialects of other products, by name.

use super::Form;

/// The carriers that a product uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// Its name in the settings.
    pub name: &'static str,
    /// The carriers that it stands for, in order.
    pub carriers: &'static [&'static str],
    /// How ids are spelled in them.
    pub form: Form,
}

const fn preset(name: &'static str, form: Form, carriers: &'static [&'static str]) -> Preset {
    Preset { name, carriers, form }
}

/// All presets, by name.
pub const PRESETS: [Preset; 11] = [
    preset("asm", Form::List, &["header:x-asm-prefer-tag"]),
    preset("bridge", Form::List, &["header:kubernetes-route-as", "header:azds-route-as"]),
    preset("ktenv", Form::Dotted, &["header:x-virtual-env"]),
    preset("microstax", Form::List, &["header:x-msx-env"]),
    preset("mirrord", Form::List, &["baggage:mirrord-session"]),
    preset("mse", Form::List, &["header:x-mse-tag"]),
    preset("okteto", Form::List, &["baggage:okteto-divert"]),
    preset("opensergo", Form::List, &["header:x-opensergo-traffic"]),
    preset("opentracing", Form::List, &["header:ot-baggage-overlay-id", "header:uberctx-overlay-id"]),
    preset("sandboxmesh", Form::Underscores, &["baggage:sandbox"]),
    preset(
        "signadot",
        Form::List,
        &[
            "baggage:sd-routing-key",
            "baggage:sd-sandbox",
            "tracestate:sd-routing-key",
            "tracestate:sd-sandbox",
            "header:ot-baggage-sd-routing-key",
            "header:ot-baggage-sd-sandbox",
            "header:uberctx-sd-routing-key",
            "header:uberctx-sd-sandbox",
        ],
    ),
];
