/// What only an etcd can do.
mod etcd;
