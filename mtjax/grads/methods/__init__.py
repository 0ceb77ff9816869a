"""The methods, one per file. Import them from `mtjax.grads`."""
