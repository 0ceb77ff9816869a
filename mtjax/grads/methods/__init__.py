"""The methods, one a file. Import them from `mtjax.grads`."""
