Llena una olla con agua. Ponla al fuego y espera a que hierva.
Lava las manzanas. Córtalas en cuartos.
