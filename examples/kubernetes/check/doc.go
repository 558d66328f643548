// Package check tests the manifests beside it: that Kubernetes knows every field, and that they fit together. It is a module of its
// own, since Kubernetes' types are many.
package check
