"""Normal components: isotropic, diagonal, full and low-rank covariances, and unit variance."""
