/// The store is away, for all or for some.
mod away;
/// What only an etcd can do.
mod etcd;
/// What only a Kubernetes cluster can do.
mod kubernetes;
/// Several writers at once.
mod model;
