//! Where a cluster is, and which of its namespaces is a store.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The longest name of a namespace: a DNS label.
const MAX_NAMESPACE: usize = 63;

/// Where a store in Kubernetes is: `[NAMESPACE][?context=NAME][&kubeconfig=PATH]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KubernetesAddress {
    /// The namespace; by default the context's, or the pod's own.
    pub namespace: Option<String>,
    /// The context of the kubeconfig; its current one by default.
    pub context: Option<String>,
    /// The kubeconfig; by default what `KUBECONFIG` names, `~/.kube/config`, or the pod's service account.
    pub kubeconfig: Option<PathBuf>,
}

impl FromStr for KubernetesAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, settings) = text.split_once('?').unwrap_or((text, ""));
        let mut address = Self { namespace: named(namespace)?, ..Self::default() };
        for (name, value) in form_urlencoded::parse(settings.as_bytes()) {
            if value.is_empty() {
                return Err(format!("`{name}=` says nothing: write `{name}=VALUE`, or leave it out"));
            }
            match &*name {
                "context" => address.context = Some(value.into_owned()),
                "kubeconfig" => address.kubeconfig = Some(PathBuf::from(value.into_owned())),
                _ => {
                    return Err(format!(
                        "`{name}` is nothing that can be said of a cluster: `context` and `kubeconfig` are"
                    ));
                }
            }
        }
        Ok(address)
    }
}

/// A namespace; none where nothing is written.
fn named(text: &str) -> Result<Option<String>, String> {
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match text {
        "" => Ok(None),
        _ if text.len() <= MAX_NAMESPACE
            && text.bytes().all(fine)
            && !text.starts_with('-')
            && !text.ends_with('-') =>
        {
            Ok(Some(text.to_owned()))
        }
        _ => Err(format!(
            "`{text}` is no namespace: lower-case letters, digits and dashes, such as `kubernetes:staging`"
        )),
    }
}

impl fmt::Display for KubernetesAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kubernetes:{}", self.namespace.as_deref().unwrap_or_default())?;
        // Paths and names of contexts stay readable: only what would end them is escaped.
        let written = |value: &str| value.replace('%', "%25").replace('&', "%26").replace('+', "%2B");
        let context = self.context.as_deref().map(|context| ("context", written(context)));
        let path = self.kubeconfig.as_ref().map(|path| ("kubeconfig", written(&path.to_string_lossy())));
        for (at, (name, value)) in context.into_iter().chain(path).enumerate() {
            write!(f, "{}{name}={value}", if at == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_a_namespace_a_context_and_a_kubeconfig_and_reads_back() {
        for text in [
            "",
            "staging",
            "staging?context=arn:aws:eks:eu-west-1:1:cluster/shop",
            "?kubeconfig=/home/a b/config",
            "staging?context=a%26b&kubeconfig=./config",
        ] {
            let address: KubernetesAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), format!("kubernetes:{text}"));
        }
        let address: KubernetesAddress = "staging?context=a".parse().expect("address");
        assert_eq!((address.namespace.as_deref(), address.context.as_deref()), (Some("staging"), Some("a")));
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_remedy() {
        for (written, why) in [
            ("Staging", "lower-case"),
            ("a/b", "no namespace"),
            ("-a", "no namespace"),
            ("a?contexts=b", "`context` and `kubeconfig`"),
            ("a?context=", "leave it out"),
        ] {
            let error = written.parse::<KubernetesAddress>().expect_err(written);
            assert!(error.contains(why), "{written}: {error}");
        }
    }
}
