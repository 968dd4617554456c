"""What `authsidecar demo` and the end-to-end tests start: real proxies and a stand-in backend."""
