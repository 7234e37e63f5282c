/// The store is away, for all or for some.
mod away;
/// What only an etcd can do.
mod etcd;
/// Several writers at once.
mod model;
