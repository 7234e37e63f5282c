//! What becomes of the key in the calls that an application makes: what `overlane doctor` reads.

use overlane_config::name::ServiceName;

/// What became of the key of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// The application forwarded it.
    Kept,
    /// It was restored by what the application did forward: the trace, or the request id.
    Restored,
    /// The call has no key and no trace, and got the key of its own environment.
    Stamped,
    /// The call has no key, and requests with one are being served here: one of them may have caused it.
    Lost,
    /// The same, but it has a trace of its own that is not known, and requests without a key are being served
    /// here as well, or messages without one are consumed: it may be one of theirs.
    Unclear,
    /// The call names another key than its trace, or its trace has two.
    Contradicting,
}

impl Outcome {
    /// The word in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Restored => "restored",
            Self::Stamped => "stamped",
            Self::Lost => "lost",
            Self::Unclear => "unclear",
            Self::Contradicting => "contradicting",
        }
    }
}

/// What an application is written in, as far as its client says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Language {
    /// The client does not say.
    #[default]
    Unknown,
    /// JavaScript on Node.
    Node,
    /// Python.
    Python,
    /// Java, Kotlin and others on the same machine.
    Java,
    /// Go.
    Go,
    /// C# and others on .NET.
    Dotnet,
    /// Ruby.
    Ruby,
}

impl Language {
    /// The word in metrics; empty where it is not known.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::Node => "node",
            Self::Python => "python",
            Self::Java => "java",
            Self::Go => "go",
            Self::Dotnet => "dotnet",
            Self::Ruby => "ruby",
        }
    }

    /// What the value of `User-Agent` tells: the names that the clients of these languages send unless
    /// they are told otherwise, gRPC's among them.
    #[must_use]
    pub fn of_agent(agent: Option<&[u8]>) -> Self {
        const AGENTS: [(&str, Language); 26] = [
            ("node", Language::Node),
            ("axios/", Language::Node),
            ("undici", Language::Node),
            ("got ", Language::Node),
            ("grpc-node", Language::Node),
            ("python", Language::Python),
            ("aiohttp", Language::Python),
            ("urllib", Language::Python),
            ("grpc-python", Language::Python),
            ("java", Language::Java),
            ("okhttp", Language::Java),
            ("apache-httpclient", Language::Java),
            ("apache-httpasyncclient", Language::Java),
            ("reactornetty", Language::Java),
            ("jetty", Language::Java),
            ("vert.x", Language::Java),
            ("ktor", Language::Java),
            ("grpc-java", Language::Java),
            ("go-http-client", Language::Go),
            ("go-resty", Language::Go),
            ("grpc-go", Language::Go),
            (".net", Language::Dotnet),
            ("restsharp", Language::Dotnet),
            ("grpc-dotnet", Language::Dotnet),
            ("ruby", Language::Ruby),
            ("faraday", Language::Ruby),
        ];
        let agent = agent.unwrap_or_default();
        let named = |name: &str| {
            agent.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
        };
        AGENTS.into_iter().find(|(name, _)| named(name)).map_or(Self::Unknown, |(_, language)| language)
    }
}

/// A call, as it is counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Call {
    /// The service that called; `None` where the process was not told which it stands beside.
    pub service: Option<ServiceName>,
    /// The service that was called.
    pub peer: ServiceName,
    /// What became of the key.
    pub outcome: Outcome,
    /// What the caller is written in, where its key was not kept.
    pub language: Language,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_clients_tell_their_language() {
        for (agent, language) in [
            ("python-requests/2.32.3", Language::Python),
            ("python-httpx/0.28", Language::Python),
            ("Python/3.12 aiohttp/3.11", Language::Python),
            ("node", Language::Node),
            ("axios/1.7.9", Language::Node),
            ("node-fetch/1.0 (+https://github.com/bitinn/node-fetch)", Language::Node),
            ("Java-http-client/21.0.2", Language::Java),
            ("okhttp/4.12.0", Language::Java),
            ("Go-http-client/1.1", Language::Go),
            ("grpc-go/1.70.0", Language::Go),
            (".NET/9.0", Language::Dotnet),
            ("Ruby", Language::Ruby),
            ("Faraday v2.12.2", Language::Ruby),
            ("curl/8.11.0", Language::Unknown),
            ("", Language::Unknown),
        ] {
            assert_eq!(Language::of_agent(Some(agent.as_bytes())), language, "{agent}");
        }
        assert_eq!(Language::of_agent(None), Language::Unknown);
    }
}
