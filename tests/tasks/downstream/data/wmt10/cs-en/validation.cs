Kočka spí na peci.
Děti si hrají na dvoře.
